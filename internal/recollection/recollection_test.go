package recollection_test

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"multihomed/internal/recollection"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

func TestFile(t *testing.T) {
	f := recollection.File{Directory: t.TempDir()}
	path := filepath.Join(f.Directory, recollection.Name)
	if r, is := f.Recall(); is {
		t.Errorf("of nothing: %+v", r)
	}
	kept := reconcile.Recollection{
		Chosen:  []routing.Rule{{Family: routing.IPv4, Priority: 100, Action: routing.ActionLookup, Table: 200, IIF: "lan0"}},
		Uplinks: []reconcile.FormerUplink{{Index: 4, Interface: "wan0", Profile: "Fibre"}},
	}
	if err := f.Keep(kept); err != nil {
		t.Fatal(err)
	}
	if r, is := f.Recall(); !is || !reflect.DeepEqual(r, kept) {
		t.Errorf("kept %+v, recalled %+v, %v", kept, r, is)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v: everybody who asks for the status reads it", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte(`{"chosen":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, is := f.Recall(); is {
		t.Errorf("of half a file: %+v", r)
	}
	f.Directory = filepath.Join(f.Directory, "gone")
	if err := f.Keep(kept); err == nil {
		t.Error("it was kept where there is no directory")
	}
}
