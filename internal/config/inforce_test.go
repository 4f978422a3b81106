package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/lastgood"
	"multihomed/routing"
)

func TestFind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, state, usual := filepath.Join(dir, "multihomed.toml"), filepath.Join(dir, "state"), filepath.Join(dir, "usual")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	find := func() config.Loaded { return config.FindWith(path, usual) }
	where := fmt.Sprintf("state_dir = %q\n", state)
	bad := where + "uplink_group = 0\ntabels = 1\n"
	write(t, path, bad)
	never := find()
	if never.Fault == nil || never.Fault.Known || never.UplinkGroup != config.Default().UplinkGroup || never.Keep(time.Now()) != nil {
		t.Fatalf("never good: %+v", never.Fault)
	}
	if _, err := lastgood.Read(state, path); !errors.Is(err, lastgood.ErrNone) {
		t.Errorf("a bad one was kept: %v", err)
	}

	write(t, path, where+"uplink_group = 7\n")
	good := find()
	if good.Fault != nil || good.UplinkGroup != 7 {
		t.Fatalf("good: %+v", good.Fault)
	}
	if err := good.Keep(time.Date(2026, 11, 28, 7, 0, 0, 0, time.Local)); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(path string) error{
		"a typo":         func(path string) error { return os.WriteFile(path, []byte(bad), 0o600) },
		"no TOML":        func(path string) error { return os.WriteFile(path, []byte("[[[\n"+where), 0o600) },
		"no text":        func(path string) error { return os.WriteFile(path, []byte("\xff\x00\n"+where), 0o600) },
		"in apostrophes": func(path string) error { return os.WriteFile(path, []byte("x\n state_dir='"+state+"' # y"), 0o600) },
	} {
		if err := do(path); err != nil {
			t.Fatal(err)
		}
		got := find()
		if got.Fault == nil || !got.Fault.Known || got.Fault.Unusable != nil || got.UplinkGroup != 7 || got.StateDir != state {
			t.Errorf("%s: %+v, group %d", name, got.Fault, got.UplinkGroup)
		}
	}

	write(t, path, bad)
	p := find().Fault.Problem()
	if p.Code != "configuration" || p.Severity != routing.Error || p.Object != path+":3" && p.Object != path+":2" ||
		strings.Count(p.Text, path) != 1 || !strings.Contains(p.Text, "; line 3: tabels: unknown key") || !strings.Contains(p.Text, "2026-11-28 07:00:00") || p.Fix != "correct lines 2 and 3 of "+path+", then: systemctl reload multihomed" {
		t.Errorf("%+v", p)
	}

	// What was kept is damaged: it is named, and the defaults are used.
	kept := filepath.Join(state, lastgood.Name)
	if err := os.Truncate(kept, 100); err != nil {
		t.Fatal(err)
	}
	if got := find(); !got.Fault.Known || got.Fault.Unusable == nil || got.UplinkGroup != config.Default().UplinkGroup || !strings.Contains(got.Fault.Error(), kept) {
		t.Errorf("damaged: %+v", got.Fault)
	}
	// A later release wrote a key that this one does not know.
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	if err := lastgood.Save(state, path, []byte("later = true\n"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := find(); got.Fault.Unusable == nil || !strings.Contains(got.Fault.Error(), "later") {
		t.Errorf("of a later release: %+v", got.Fault)
	}
}

// TestFix: a fix names every line, and the command that works: where no daemon runs, a reload
// fails.
func TestFix(t *testing.T) {
	t.Parallel()
	mistakes := func(lines ...int) error {
		var all []error
		for _, n := range lines {
			all = append(all, &config.Error{File: "/f", Line: n, Message: "bad"})
		}
		return errors.Join(all...)
	}
	for _, c := range []struct {
		err         error
		start, want string
	}{
		{errors.New("permission denied"), "", "correct /f, then: systemctl reload multihomed"},
		{errors.New("permission denied; to fix: chmod a+r /f"), "", "chmod a+r /f, then: systemctl reload multihomed"},
		{mistakes(0), "", "correct /f, then: systemctl reload multihomed"},
		{mistakes(3), "systemctl restart multihomed", "correct /f:3, then: systemctl restart multihomed"},
		{mistakes(3, 0, 3), "", "correct /f:3, then: systemctl reload multihomed"},
		{mistakes(9, 3), "", "correct lines 3 and 9 of /f, then: systemctl reload multihomed"},
		{mistakes(1, 2, 3, 4, 5, 6), "", "correct lines 1, 2, 3, 4, 5 and 6 of /f, then: systemctl reload multihomed"},
		{mistakes(1, 2, 3, 4, 5, 6, 7, 8), "", "correct lines 1, 2, 3, 4, 5, 6 and 2 more of /f, then: systemctl reload multihomed"},
	} {
		fault := config.Fault{File: "/f", Err: c.err, Start: c.start, Instead: "the defaults"}
		if got := fault.Problem().Fix; got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		fault.Refuse()
		if text := fault.Error(); !fault.Refused || !strings.Contains(text, "in use instead: nothing") {
			t.Errorf("refused: %q", text)
		}
	}
}

// A bad file may name another state_dir, or none that can be read: the copy in the
// usual directory tells.
func TestFindWithAnotherStateDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, state, other, usual := filepath.Join(dir, "multihomed.toml"), filepath.Join(dir, "state"), filepath.Join(dir, "other"), filepath.Join(dir, "usual")
	for _, d := range []string{state, other, usual} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, path, fmt.Sprintf("state_dir = %q\nuplink_group = 7\n", state))
	if err := config.FindWith(path, usual).Keep(time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("state_dir = %q\nnonsense = 1\n", other), "state_dir = \"relative\"\n", "state_dir = 5\n"} {
		write(t, path, text)
		if got := config.FindWith(path, usual); got.StateDir != state || got.UplinkGroup != 7 || got.Fault == nil {
			t.Errorf("%q: %+v", text, got.Fault)
		}
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	if got := config.FindWith(path, usual); got.StateDir != state || got.UplinkGroup != 7 {
		t.Errorf("a directory: %+v", got.Fault)
	}
	// What came into force last counts, wherever it was kept.
	if err := lastgood.Save(other, path, []byte("uplink_group = 9\n"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, fmt.Sprintf("state_dir = %q\nnonsense = 1\n", other))
	if got := config.FindWith(path, usual); got.UplinkGroup != 9 {
		t.Errorf("the older one is used: %+v", got.Fault)
	}
}

// Files that are no files take the same way.
func TestFindStrangeFiles(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"a pipe":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"too large":   func(path string) error { return os.WriteFile(path, make([]byte, 2<<20), 0o644) },
		"a loop":      func(path string) error { return os.Symlink(path, path) },
		"many errors": func(path string) error { return os.WriteFile(path, []byte(manyKeys(20_000)), 0o644) },
	} {
		path := filepath.Join(t.TempDir(), "multihomed.toml")
		if err := do(path); err != nil {
			t.Fatal(err)
		}
		got := config.FindWith(path, filepath.Join(t.TempDir(), "none"))
		if got.Fault == nil || got.Fault.Known || !strings.Contains(got.Fault.Error(), path) || got.Tables != config.Default().Tables {
			t.Errorf("%s: %+v", name, got.Fault)
		}
		if n := len(got.Fault.Error()); n > 4096 {
			t.Errorf("%s: %d bytes of error", name, n)
		}
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "key%d = 1\n", i)
	}
	return b.String()
}

// TestDangling: a symbolic link to nothing, as the file or as a directory above it, is a
// fault and not a host without a configuration; the last good one stays.
func TestDangling(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	usual, there := filepath.Join(dir, "usual"), filepath.Join(dir, "there")
	for _, d := range []string{usual, there} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(there, "m.toml"), "uplink_group = 7\n")
	file, above := filepath.Join(dir, "m.toml"), filepath.Join(dir, "etc")
	for link, to := range map[string]string{file: filepath.Join(there, "m.toml"), above: "there"} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{file, filepath.Join(above, "m.toml")} {
		good := config.FindWith(path, usual)
		if good.Fault != nil || good.UplinkGroup != 7 {
			t.Fatalf("%s: %+v", path, good.Fault)
		}
		if err := lastgood.Save(usual, path, []byte("uplink_group = 7\n"), time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(there, there+".away"); err != nil {
			t.Fatal(err)
		}
		bad := config.FindWith(path, usual)
		if bad.Fault == nil || bad.UplinkGroup != 7 || !strings.Contains(bad.Fault.Error(), "is a symbolic link to ") {
			t.Errorf("%s: %+v, group %d", path, bad.Fault, bad.UplinkGroup)
		}
		if err := bad.Keep(time.Now()); err != nil {
			t.Error(err)
		}
		if s, err := lastgood.Read(usual, path); err != nil || string(s.Text) != "uplink_group = 7\n" {
			t.Errorf("%s: %q, %v", path, s.Text, err)
		}
		if _, why := config.Salvage(path); why == nil {
			t.Errorf("%s: nothing is wrong with it", path)
		}
		if err := os.Rename(there+".away", there); err != nil {
			t.Fatal(err)
		}
	}
	// What is merely not there is no fault, and neither is a loop a missing file.
	if none := config.FindWith(filepath.Join(dir, "none", "m.toml"), usual); none.Fault != nil {
		t.Error(none.Fault)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	if l := config.FindWith(loop, usual); l.Fault == nil {
		t.Error("a loop is no configuration")
	}
}

// TestByteOrder: the mark of UTF-8 is passed over, another encoding is named.
func TestByteOrder(t *testing.T) {
	t.Parallel()
	cfg, err := config.Parse("x", []byte("\xef\xbb\xbfuplink_group = 7\n"))
	if err != nil || cfg.UplinkGroup != 7 {
		t.Errorf("%v, group %d", err, cfg.UplinkGroup)
	}
	for _, text := range []string{"\xff\xfeu\x00", "\xfe\xff\x00u"} {
		if _, err := config.Parse("x", []byte(text)); err == nil || !strings.Contains(err.Error(), "x:1: it is encoded in UTF-16") || !strings.Contains(err.Error(), "iconv") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
