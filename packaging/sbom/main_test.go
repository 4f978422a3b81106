package main

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestThisProgram describes the test binary itself, whose modules are known.
func TestThisProgram(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	for _, out := range []*bytes.Buffer{&one, &two} {
		if err := run([]string{self, "multihomed", "1.2.3"}, "1795248000", out); err != nil {
			t.Fatal(err)
		}
	}
	if one.String() != two.String() {
		t.Error("two documents of one program differ")
	}
	var doc document
	if err := json.Unmarshal(one.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Format != "CycloneDX" || doc.Metadata.Component.PURL != "pkg:golang/multihomed@1.2.3" || len(doc.Metadata.Component.Hashes) != 1 ||
		!strings.HasPrefix(doc.Metadata.Timestamp, "2026-11-21T08:00:00Z") {
		t.Errorf("%+v", doc.Metadata)
	}
	if want := "pkg:golang/std@" + strings.TrimPrefix(runtime.Version(), "go"); doc.Components[0].PURL != want {
		t.Errorf("%s, want %s", doc.Components[0].PURL, want)
	}
	if d := doc.Dependencies; len(d) != 1 || len(d[0].DependsOn) != len(doc.Components) {
		t.Errorf("%+v", d)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"usage: ": {"x"},
		"reading the build information of main.go": {"main.go", "a", "1"},
	} {
		if err := run(args, "0", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if err := run([]string{"a", "b", "c"}, "", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Error(err)
	}
}
