package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNames calls the program by names of all kinds, through links as distributions
// and administrators make them.
func TestNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := func(target string, path ...string) string {
		t.Helper()
		name := filepath.Join(append([]string{dir}, path...)...)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	if err := os.WriteFile(filepath.Join(dir, "multihomed"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	link("multihomed", "multihomectl")
	link("multihomed", "multihomed-dispatcher")
	link("..", "usr", "merged")
	link("usr/bin", "jump")
	link("../multihomectl", "usr", "alias") // and nothing of this name beside jump
	for path, want := range map[string]string{
		"multihomed": "multihomed", "/usr/sbin/multihomed": "multihomed", "multihomectl": "multihomectl",
		"/usr/lib/NetworkManager/dispatcher.d/no-wait.d/90-multihomed": "multihomed-dispatcher",
		"/nowhere/multihomed-dispatcher":                               "multihomed-dispatcher",
		// Names of the administrator's.
		link("../multihomectl", "bin", "mh"):                           "multihomectl",
		link("mh", "bin", "mh2"):                                       "multihomectl",
		link("../jump/../alias", "bin", "mh3"):                         "multihomectl",
		link("../merged/multihomectl", "usr", "bin", "mh4"):            "multihomectl",
		link("../multihomed-dispatcher", "no-wait.d", "50-our-uplink"): "multihomed-dispatcher",
		link(filepath.Join(dir, "multihomed"), "bin", "mhd"):           "multihomed",
		// Nobody's.
		link("loop", "loop"): "", filepath.Join(dir, "nothing"): "", "no-such-name": "", "": "", ".": "", "/": "", "x/": "",
	} {
		name, known := nameOf(path)
		if want == "" {
			if name != daemonName || known {
				t.Errorf("%q is %q, %v", path, name, known)
			}
			continue
		}
		// Functions compare by what they do alone.
		if !known || (name != want && (name != "90-multihomed" || want != "multihomed-dispatcher")) {
			t.Errorf("%q is %q, %v; want %q", path, name, known, want)
		}
	}
}

// TestNameInPath: a shell passes the name as it was typed, without where it found it.
func TestNameInPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "multihomectl"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("multihomectl", filepath.Join(dir, "mh")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nowhere:"+dir)
	if name, known := nameOf("mh"); name != "multihomectl" || !known {
		t.Errorf("%q, %v", name, known)
	}
	if name, known := nameOf("mh2"); name != daemonName || known {
		t.Errorf("%q, %v", name, known)
	}
}

// TestNamesAreInstalled: each name that users call is one that `make install` makes.
func TestNamesAreInstalled(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for line := range strings.Lines(string(text)) {
		if words, is := strings.CutPrefix(line, "NAMES   := "); is {
			made = strings.Fields(words)
		}
	}
	if want := others(); !slices.Equal(made, want) {
		t.Errorf("the Makefile's NAMES are %q, and programs has %q", made, want)
	}
}

// TestUnknownName: the daemon says by which name it was called when it does not
// understand what it is told.
func TestUnknownName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "strange\x1bname")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), path, args...)
		out, _ := cmd.CombinedOutput() // Its exit status is looked at.
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := run("wan0", "up")
	if code != 64 || !strings.Contains(out, `under the name "strange\x1bname" it is the daemon`) || !strings.Contains(out, "multihomectl, multihomed-binder, multihomed-dispatcher") {
		t.Errorf("%d: %s", code, out)
	}
	if out, code := run("--version"); code != 0 || out != "multihomed development\n" {
		t.Errorf("%d: %s", code, out)
	}
}
