package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	native "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"multihomed/internal/event"
	"multihomed/internal/journal"
)

type line struct {
	priority native.Priority
	text     string
	fields   map[string]string
}

type lines []line

func (l *lines) send(text string, p native.Priority, fields map[string]string) error {
	*l = append(*l, line{p, text, fields})
	return nil
}

func TestSentence(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		level   slog.Level
		message string
		attrs   []slog.Attr
		want    line
	}{
		{slog.LevelInfo, "gateway 192.168.8.1 added (DHCP)", []slog.Attr{event.Is(event.LinkChanged), slog.String("interface", "enp2s0")}, line{
			native.PriInfo, "enp2s0: gateway 192.168.8.1 added (DHCP)",
			map[string]string{"INTERFACE": "enp2s0", "MULTIHOMED_EVENT": "link-changed", "MESSAGE_ID": event.LinkChanged.MessageID()},
		}},
		{slog.LevelWarn, "component unavailable", []slog.Attr{
			slog.String("error", "no room"), slog.String("component", "table allocator"), slog.String("fix", "make room"),
			slog.String("reason", "the disk is full"), slog.Uint64("table", 10004), slog.String("code", "leases"),
		}, line{
			native.PriWarning, "component unavailable (component table allocator, table 10004), because the disk is full: no room; to fix: make room",
			map[string]string{
				"MULTIHOMED_COMPONENT": "table allocator", "MULTIHOMED_TABLE": "10004", "MULTIHOMED_ERROR": "no room", "MULTIHOMED_FIX": "make room",
				"MULTIHOMED_REASON": "the disk is full", "MULTIHOMED_CODE": "leases",
			},
		}},
		{slog.LevelError, "two\nlines", []slog.Attr{
			slog.String("interface", "a\xff\\"), slog.Group("old", slog.String("name", "x, y"), slog.Int("uid", 7)), slog.Attr{}, slog.String("empty", ""),
		}, line{
			native.PriErr, `a\xff\\: two\x0alines (old name "x, y", old uid 7, empty "")`,
			map[string]string{"INTERFACE": "a\xff\\", "MULTIHOMED_OLD_NAME": "x, y", "MULTIHOMED_OLD_UID": "7", "MULTIHOMED_EMPTY": ""},
		}},
		{event.LevelNotice, "restored", nil, line{native.PriNotice, "restored", nil}},
		{slog.LevelDebug, "seen", nil, line{native.PriDebug, "seen", nil}},
	} {
		var got lines
		log := slog.New(journal.NewHandler(journal.NativeTo(got.send, nil), slog.LevelDebug))
		log.LogAttrs(t.Context(), test.level, test.message, test.attrs...) //nolint:sloglint // of the table
		want := test.want
		if want.fields == nil {
			want.fields = map[string]string{}
		}
		want.fields["SYSLOG_IDENTIFIER"] = "multihomed"
		if len(got) != 1 || got[0].text != want.text || got[0].priority != want.priority || !maps.Equal(got[0].fields, want.fields) {
			t.Errorf("got  %+v\nwant %+v", []line(got), want)
		}
	}
}

func TestGroupsAndLevels(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := slog.New(journal.NewHandler(journal.Prefixed(&out), level))
	log.Debug("not seen")
	log.With("interface", "wan0").WithGroup("lease").With("table", 10000).Info("leased", "uid", 7)
	level.Set(slog.LevelDebug)
	log.Debug("seen")
	log.Error("lost")
	if want := "<6>wan0: leased (lease table 10000, lease uid 7)\n<7>seen\n<3>lost\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	at := time.Date(2026, 11, 28, 7, 5, 6, 7_000_000, time.Local)
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, event.LevelNotice, slog.LevelWarn, slog.LevelError} {
		if err := journal.Plain(&out).Write(at, level, "text", nil); err != nil {
			t.Error(err)
		}
	}
	const begin = "2026-11-28 07:05:06.007 "
	if want := begin + "debug: text\n" + begin + "text\n" + begin + "notice: text\n" + begin + "warning: text\n" + begin + "error: text\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
}

// TestJournalFails wants a line that the journal does not take on standard error.
func TestJournalFails(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	send := func(string, native.Priority, map[string]string) error { return errors.New("no journal") }
	slog.New(journal.NewHandler(journal.NativeTo(send, journal.Prefixed(&out)), slog.LevelInfo)).Warn("help")
	if out.String() != "<4>help\n" {
		t.Errorf("got %q", out.String())
	}
}

// TestSinkOf wants prefixes only where JOURNAL_STREAM names the very file.
func TestSinkOf(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{"", "8:12345", "nonsense", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)} {
		t.Setenv("JOURNAL_STREAM", stream)
		if err := journal.SinkOfWithout(f).Write(time.Now(), slog.LevelWarn, "text", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(got) != 4 || got[3] != "<4>text" {
		t.Fatalf("wrote %q", got)
	}
	for _, l := range got[:3] {
		if !strings.HasSuffix(l, " warning: text") {
			t.Errorf("wrote %q", l)
		}
	}
}

// TestCatalog wants each event explained once, and nothing else.
func TestCatalog(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../packaging/catalog/multihomed.catalog")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for entry := range strings.SplitSeq(string(data), "\n-- ") {
		id, rest, _ := strings.Cut(entry, "\n")
		if strings.HasPrefix(entry, "#") {
			continue
		}
		if seen[id] {
			t.Errorf("%s is explained twice", id)
		}
		seen[id] = true
		head, body, _ := strings.Cut(rest, "\n\n")
		for _, want := range []string{"Subject: ", "Defined-By: multihomed", "Support: ", "Documentation: man:multihomed(8)"} {
			if !strings.Contains(head, want) {
				t.Errorf("%s has no %s", id, want)
			}
		}
		if strings.TrimSpace(body) == "" {
			t.Errorf("%s has no text", id)
		}
	}
	for _, e := range event.All() {
		if !seen[e.MessageID()] {
			t.Errorf("%s (%s) is not explained", e, e.MessageID())
		}
		delete(seen, e.MessageID())
	}
	for id := range seen {
		t.Errorf("%s is explained and never written", id)
	}
}
