package cli_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/test/schematest"
)

// installed puts the program where a package has it.
func (h *host) installed() {
	h.t.Helper()
	for _, name := range []string{"multihomed", "multihomectl"} {
		path := filepath.Join("/usr/sbin", name)
		h.must(os.Symlink(program(h.t, name), path))
		h.t.Cleanup(func() { h.must(os.Remove(path)) })
	}
}

// leaks are addresses of the host that a text has.
func (h *host) leaks(text string) (out []string) {
	h.t.Helper()
	for _, link := range []string{"wan0", "wan1"} {
		if a := h.addr(link).String(); strings.Contains(text, a) {
			out = append(out, a)
		}
	}
	return out
}

// TestSOS runs the real sos with the plugin.
func TestSOS(t *testing.T) {
	h := newHost(t)
	h.launch()
	h.installed()
	// As a link in the directory of sos, which is not this test's.
	const run = `import sys, sos.report.plugins as plugins
plugins.__path__.append(sys.argv.pop(1))
from sos import SoS
SoS(sys.argv[1:]).execute()`
	plugin, err := filepath.Abs("../../packaging/sos")
	h.must(err)
	for _, redacted := range []bool{false, true} {
		temporary := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", run, plugin, "report", "--batch", "--build", "-o", "multihomed", "--tmp-dir", temporary, "-k", fmt.Sprintf("multihomed.redact=%v", redacted))
		cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		found, err := filepath.Glob(filepath.Join(temporary, "sosreport-*", "sos_commands", "multihomed"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%q, %v", found, err)
		}
		for command, file := range map[string]string{"status": "report/status.json", "doctor": "report/doctor.json"} {
			data, err := os.ReadFile(filepath.Join(found[0], file))
			h.must(err)
			h.must(schematest.Check(command, data))
			if leaks := h.leaks(string(data)); command == "status" && redacted == (len(leaks) > 0) {
				t.Errorf("redacted is %v: %s", redacted, data)
			}
		}
		if redacted {
			continue
		}
		data, err := os.ReadFile(filepath.Join(found[0], "multihomectl_status_--json"))
		h.must(err)
		h.must(schematest.Check("status", data))
	}
}

// TestReportbug runs reportbug's own handler of scripts: nothing is collected unless somebody says yes on a terminal, and
// nobody is waited for without one.
func TestReportbug(t *testing.T) {
	h := newHost(t)
	h.launch()
	h.installed()
	const handler = "/usr/share/reportbug/handle_bugscript"
	text, err := os.ReadFile("../../packaging/debian/multihomed.bug-script")
	h.must(err)
	directory := t.TempDir()
	script := filepath.Join(directory, "script")
	h.must(os.WriteFile(script, []byte(strings.Replace(string(text), "/usr/bin/multihomectl", "/usr/sbin/multihomectl", 1)), 0o755))
	said := func(name, answer string, terminal bool) string {
		t.Helper()
		out := filepath.Join(directory, name)
		cmd := exec.CommandContext(t.Context(), handler, script, out)
		if terminal {
			// script(1) has a terminal for it.
			cmd = exec.CommandContext(t.Context(), "script", "-qec", handler+" "+script+" "+out, "/dev/null")
			cmd.Stdin = strings.NewReader(answer)
		}
		if printed, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, printed)
		}
		data, err := os.ReadFile(out)
		h.must(err)
		return string(data)
	}
	if text := said("nobody", "", false); text != "-- multihomectl report: nobody could be asked\n" {
		t.Errorf("without a terminal: %s", text)
	}
	if text := said("no", "n", true); text != "-- multihomectl report: declined\n" {
		t.Errorf("no: %s", text)
	}
	for _, name := range []string{"yes", "without the daemon"} {
		text := said(strings.ReplaceAll(name, " ", "-"), "y", true)
		for _, want := range []string{"-- versions\nmultihomectl ", "-- status\n", "-- doctor\n", "-- rules-ipv4\n", "wan0", "-- all of it: multihomectl report --redact\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: it lacks %q:\n%s", name, want, text)
			}
		}
		if leak := h.leaks(text); len(leak) > 0 || len(text) > 13*(32<<10) {
			t.Errorf("%s: %q leaks, of %d bytes", name, leak, len(text))
		}
		if name == "yes" {
			h.stop()
		}
	}
}
