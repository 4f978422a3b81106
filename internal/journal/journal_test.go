package journal_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/event"
	"multihomed/internal/journal"
)

// A socket is the journal's.
type socket struct {
	*net.UnixConn
	path string
}

func newSocket(t *testing.T) socket {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return socket{conn, path}
}

func (s socket) next(t *testing.T) string {
	t.Helper()
	buffer := make([]byte, 1<<16)
	n, err := s.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func TestNative(t *testing.T) {
	t.Parallel()
	to := newSocket(t)
	log := slog.New(journal.NewHandler(journal.NativeTo(to.path, nil), slog.LevelDebug))
	for _, test := range []struct {
		level   slog.Level
		message string
		attrs   []slog.Attr
		want    string
	}{
		{
			slog.LevelInfo, "gateway 192.168.8.1 added (DHCP)",
			[]slog.Attr{event.Is(event.LinkChanged), slog.String("interface", "enp2s0"), event.Field("table", "10000"), event.Field("table", "10001")},
			"PRIORITY=6\nMESSAGE=enp2s0: gateway 192.168.8.1 added (DHCP)\nSYSLOG_IDENTIFIER=multihomed\nMULTIHOMED_EVENT=link-changed\nMESSAGE_ID=" +
				event.LinkChanged.MessageID() + "\nINTERFACE=enp2s0\nMULTIHOMED_TABLE=10000\nMULTIHOMED_TABLE=10001\n",
		},
		{
			slog.LevelWarn, "component unavailable",
			[]slog.Attr{
				slog.String("error", "no room"), slog.String("component", "table allocator"), slog.String("fix", "make room"),
				slog.String("reason", "the disk is full"), slog.Uint64("table", 10004), event.Field("code", "leases"),
			},
			"PRIORITY=4\nMESSAGE=component unavailable (component table allocator, table 10004), because the disk is full: no room; to fix: make room\n" +
				"SYSLOG_IDENTIFIER=multihomed\nMULTIHOMED_ERROR=no room\nMULTIHOMED_COMPONENT=table allocator\nMULTIHOMED_FIX=make room\n" +
				"MULTIHOMED_REASON=the disk is full\nMULTIHOMED_TABLE=10004\nMULTIHOMED_CODE=leases\n",
		},
		{
			slog.LevelError, "two\nlines",
			[]slog.Attr{slog.String("interface", "a\xff\\"), slog.Group("old", slog.String("name", "x, y"), slog.String("text", "1\n2")), {}, slog.String("empty", "")},
			"PRIORITY=3\nMESSAGE=a\\xff\\\\: two\\x0alines (old name \"x, y\", old text \"1\\n2\", empty \"\")\nSYSLOG_IDENTIFIER=multihomed\nINTERFACE=a\xff\\\n" +
				"MULTIHOMED_OLD_NAME=x, y\nMULTIHOMED_OLD_TEXT\n\x03\x00\x00\x00\x00\x00\x00\x001\n2\nMULTIHOMED_EMPTY=\n",
		},
		{event.LevelNotice, "restored", nil, "PRIORITY=5\nMESSAGE=restored\nSYSLOG_IDENTIFIER=multihomed\n"},
		{slog.LevelDebug, "seen", nil, "PRIORITY=7\nMESSAGE=seen\nSYSLOG_IDENTIFIER=multihomed\n"},
	} {
		log.LogAttrs(t.Context(), test.level, test.message, test.attrs...) //nolint:sloglint // of the table
		if got := to.next(t); got != test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

// TestJournalRestarts wants the line that comes after a restart on the new socket,
// and the lines in between on standard error.
func TestJournalRestarts(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	to := newSocket(t)
	log := slog.New(journal.NewHandler(journal.NativeTo(to.path, journal.Prefixed(&out)), slog.LevelInfo))
	log.Info("one")
	to.next(t)
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(to.path)
	log.Warn("two")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: to.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	log.Info("three")
	if got := (socket{conn, to.path}).next(t); !strings.Contains(got, "MESSAGE=three\n") || out.String() != "<4>two\n" {
		t.Errorf("the journal got %q, standard error %q", got, out.String())
	}
}

func TestGroupsAndLevels(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := slog.New(journal.NewHandler(journal.Prefixed(&out), level))
	log.Debug("not seen")
	log.With(slog.String("interface", "wan0")).WithGroup("lease").With(slog.Int("table", 10000)).Info("leased", slog.Int("uid", 7))
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
