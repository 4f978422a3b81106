package cgroups_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"multihomed/internal/cgroups"
)

func TestWhatIsBoundIsRemembered(t *testing.T) {
	t.Parallel()
	m := cgroups.Memory{Directory: t.TempDir()}
	if all := m.Recall(); len(all) > 0 {
		t.Errorf("before: %v", all)
	}
	want := []cgroups.Bound{{ID: 1 << 60, Path: `a.slice/b\x2d.service`, Link: "wan1", At: time.Unix(1, 5).UTC(), Window: time.Second, Early: 3}}
	if err := m.Keep(want); err != nil {
		t.Fatal(err)
	}
	if all := m.Recall(); !slices.Equal(all, want) {
		t.Errorf("%v, want %v", all, want)
	}
	for _, bad := range []string{"", "{", `{"id":1}`, `[{"id":0,"path":"a","link":"b"}]`, `[{"id":1,"path":"../a","link":"b"}]`, `[{"id":1,"path":"a"}]`} {
		if err := os.WriteFile(filepath.Join(m.Directory, cgroups.MemoryName), []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if all := m.Recall(); len(all) > 0 {
			t.Errorf("%q: %v", bad, all)
		}
	}
	if err := (cgroups.Memory{Directory: filepath.Join(m.Directory, "none")}).Keep(nil); err == nil {
		t.Error("it was kept in a directory that does not exist")
	}
}
