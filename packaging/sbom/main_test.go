package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
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
	if self, std := doc.Metadata.Component.Licenses, doc.Components[0].Licenses; len(self) != 1 || self[0].License.ID != "Apache-2.0" || len(std) != 1 || std[0].License.ID != "BSD-3-Clause" {
		t.Errorf("licences %+v, %+v", self, std)
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

// TestLicenses: what is not recognised stops a release.
func TestLicenses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Apache License\n  Version 2.0, January 2004":                                   "Apache-2.0",
		"Permission is hereby granted, free of charge, to any\nperson obtaining a copy": "MIT",
		"Redistribution and use in source and binary forms\nNeither the name of":        "BSD-3-Clause",
		"Redistribution and use in source and binary forms":                             "BSD-2-Clause",
		"All rights reserved": "", "": "",
	} {
		directory := t.TempDir()
		if text != "" {
			if err := os.WriteFile(filepath.Join(directory, "LICENSE"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := licenseOf(directory)
		if want == "" && err == nil || want != "" && (err != nil || got[0].License.ID != want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
