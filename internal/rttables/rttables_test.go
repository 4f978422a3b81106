package rttables_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"multihomed/internal/rttables"
	"multihomed/routing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	etc, share, none := filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "share"), filepath.Join(t.TempDir(), "none")
	// As Debian ships it, and what people add.
	write(t, filepath.Join(share, "rt_tables"), "#\n# reserved values\n#\n255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n#\n# local\n#\n#1\tinr.ruhep\n")
	write(t, filepath.Join(etc, "rt_tables"), "  100 isp1 # the first\n0x65\tisp2\n10000 mine")
	write(t, filepath.Join(share, "rt_tables.d", "a.conf"), "100 other\n200 vpn\n")
	write(t, filepath.Join(etc, "rt_tables.d", "b.conf"), "201 b\r\nnonsense\n202 after-nonsense\n")
	write(t, filepath.Join(etc, "rt_tables.d", rttables.OwnFile), "10001 mh-wan0\n")
	write(t, filepath.Join(etc, "rt_tables.d", "README"), "300 readme\n")
	write(t, filepath.Join(etc, "rt_tables.d", ".hidden.conf"), "301 hidden\n")

	names, err := rttables.LoadFrom(etc, none, share)
	if err != nil {
		t.Fatal(err)
	}
	file := func(dir string, more ...string) string { return filepath.Join(append([]string{dir}, more...)...) }
	want := map[routing.TableID]rttables.Name{
		0:     {"unspec", file(share, "rt_tables")},
		253:   {"default", file(share, "rt_tables")},
		254:   {"main", file(share, "rt_tables")},
		255:   {"local", file(share, "rt_tables")},
		100:   {"isp1", file(etc, "rt_tables")},
		101:   {"isp2", file(etc, "rt_tables")},
		10000: {"mine", file(etc, "rt_tables")},
		200:   {"vpn", file(share, "rt_tables.d", "a.conf")},
		201:   {"b", file(etc, "rt_tables.d", "b.conf")},
		202:   {"after-nonsense", file(etc, "rt_tables.d", "b.conf")},
	}
	if diff := cmp.Diff(want, names.Tables()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if why, used := names.Lookup(100); !used || why != "isp1 in "+file(etc, "rt_tables") {
		t.Errorf("table 100: %q, %v", why, used)
	}
	if why, used := names.Lookup(10001); used {
		t.Errorf("our own table counts as foreign: %q", why)
	}
	var zero rttables.Names
	if _, used := zero.Lookup(100); used {
		t.Error("the zero value knows a table")
	}
}

func TestThisHost(t *testing.T) {
	t.Parallel()
	names, err := rttables.Load()
	if err != nil {
		t.Fatal(err)
	}
	for table := range names.Tables() {
		if why, used := names.Lookup(table); !used || why == "" {
			t.Errorf("table %v: %q, %v", table, why, used)
		}
	}
}

func TestHostileFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := filepath.Join(dir, "rt_tables.d")
	write(t, filepath.Join(dir, "rt_tables"), strings.Join([]string{
		"-1 negative", "4294967296 large", "4294967295 last", "0x hex", "0xffffffffff hex", "1_000 underscore", "12", "13 #name", "+14 plus",
		"15 \x1b[31mred", "16 " + strings.Repeat("x", 500), "\x00\x00\x00", "17\x00a b", strings.Repeat("9", 100000) + " x", "18 ok",
	}, "\n"))
	write(t, filepath.Join(d, "big.conf"), strings.Repeat("19 x\n", 1<<18))
	write(t, filepath.Join(d, "good.conf"), "20 good\n")
	if err := errors.Join(os.Mkdir(filepath.Join(d, "dir.conf"), 0o755), unix.Mkfifo(filepath.Join(d, "pipe.conf"), 0o600),
		os.Symlink("/dev/zero", filepath.Join(d, "zero.conf")), os.Symlink("nowhere", filepath.Join(d, "dangling.conf")),
		os.Symlink("good.conf", filepath.Join(d, "link.conf"))); err != nil {
		t.Fatal(err)
	}
	names, err := rttables.LoadFrom(dir)
	for _, bad := range []string{"big.conf", "dir.conf", "pipe.conf", "zero.conf"} {
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("the error does not name %s: %v", bad, err)
		}
	}
	got := slices.Sorted(maps.Keys(names.Tables()))
	if diff := cmp.Diff([]routing.TableID{15, 16, 18, 20, 4294967295}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, table := range []routing.TableID{15, 16} {
		if why, _ := names.Lookup(table); strings.ContainsRune(why, 0x1b) || len(why) > len(dir)+100 {
			t.Errorf("not fit to be shown: %q", why)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("255\tlocal\n0x10 x # y\n"))
	f.Add([]byte("\x00\n1 \xff\xfe\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		own := t.TempDir()
		if err := os.WriteFile(filepath.Join(own, "rt_tables"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		names, err := rttables.LoadFrom(own)
		if err != nil {
			t.Fatal(err)
		}
		for table, name := range names.Tables() {
			if why, used := names.Lookup(table); !used || strings.ContainsAny(why, "\n\x00\x1b") || name.File == "" {
				t.Errorf("table %d: %q", table, why)
			}
		}
	})
}
