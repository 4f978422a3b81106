package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// scratchDir is where large temporary files are. A lab and a machine see it as the
// host does.
const scratchDir = "/var/tmp"

// slow is by how much a machine without hardware help stretches the bounds of the
// lab, unless Config.Env says otherwise.
const (
	slowEnv = lab.SlowEnv
	slow    = "5"
)

// A scratch is the directory of what was built on the host for a machine.
type scratch struct{ dir, programs string }

func (s *scratch) make() error {
	if s.dir != "" {
		return nil
	}
	dir, err := os.MkdirTemp(scratchDir, "multihomed-vm")
	if err == nil {
		// Tests run programs as other users, too.
		err = os.Chmod(dir, 0o755)
	}
	s.dir = dir
	return err
}

func (s *scratch) remove() error {
	if s.dir == "" {
		return nil
	}
	err := os.RemoveAll(s.dir)
	*s = scratch{}
	return err
}

// goTool runs the go command in the directory of the calling test, with its build
// cache and flags.
func goTool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// buildTest builds the test binary of a package and the programs that it may ask
// labtest.Build for: nothing is compiled inside.
func (m *Machine) buildTest(ctx context.Context, pkg string) (binary, dir string, err error) {
	if err := m.built.make(); err != nil {
		return "", "", err
	}
	if m.built.programs == "" {
		programs := filepath.Join(m.built.dir, "programs")
		if _, err := goTool(ctx, "build", "-buildvcs=false", "-o", programs+"/", "multihomed/cmd/..."); err != nil {
			return "", "", err
		}
		if err := labtest.Links(programs); err != nil {
			return "", "", err
		}
		m.built.programs = programs
	}
	if dir, err = goTool(ctx, "list", "-f", "{{.Dir}}", pkg); err != nil {
		return "", "", err
	}
	// A name that the machine has not looked for yet.
	f, err := os.CreateTemp(m.built.dir, "*.test")
	if err != nil {
		return "", "", err
	}
	if err := f.Close(); err != nil {
		return "", "", err
	}
	_, err = goTool(ctx, "test", "-c", "-o", f.Name(), pkg)
	return f.Name(), dir, err
}

// passed finds the tests, of the top level, that a binary reports with -test.v.
var passed = regexp.MustCompile(`(?m)^--- PASS: (\S+)`)

var errNoTest = errors.New("no test ran")

// runTest is Test without the testing package.
func (m *Machine) runTest(ctx context.Context, pkg, run string, c Command) error {
	binary, dir, err := m.buildTest(ctx, pkg)
	if err != nil {
		return err
	}
	c.Args = append([]string{binary, "-test.v", "-test.run", run}, c.Args...)
	c.Dir = dir
	c.Env = append(c.Env, labtest.ProgramsEnv+"="+m.built.programs)
	r, err := m.Command(ctx, c)
	switch {
	case err != nil:
		return err
	case r.Status != 0:
		return fmt.Errorf("exit status %d", r.Status)
	case !passed.MatchString(r.Output):
		return errNoTest
	}
	return nil
}

// Test runs the tests of a package that -test.run selects inside the machine, which
// must be one of Start. The test binary and the programs of cmd are built on the
// host, without the race detector. Their output is tb's as it comes; tb fails if
// they do, or if no test ran.
func (m *Machine) Test(tb testing.TB, pkg, run string) {
	tb.Helper()
	c := Command{Output: tb.Output()}
	if t, ok := tb.(*testing.T); ok {
		// A hanging test prints its stack before the test outside ends.
		if deadline, ok := t.Deadline(); ok {
			c.Args = append(c.Args, "-test.timeout", max(time.Second, time.Until(deadline)-20*time.Second).String())
		}
	}
	if err := m.runTest(tb.Context(), pkg, run, c); err != nil {
		tb.Fatalf("%s -run %s on the kernel of %s: %v", pkg, run, m.cfg.Release, err)
	}
}

// Test is the method on its own machine.
func Test(tb testing.TB, release, pkg, run string) {
	tb.Helper()
	StartTest(tb, Config{Release: release}).Test(tb, pkg, run)
}

// StartTest is Start for the rest of a test.
func StartTest(tb testing.TB, cfg Config) *Machine {
	tb.Helper()
	return forTest(tb, cfg, Start)
}

// BootTest is Boot for the rest of a test. A failed test shows the end of the
// journal.
func BootTest(tb testing.TB, cfg Config) *Machine {
	tb.Helper()
	return forTest(tb, cfg, Boot)
}

func forTest(tb testing.TB, cfg Config, start func(context.Context, Config) (*Machine, error)) *Machine {
	tb.Helper()
	m, err := start(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() && m.whole && m.On() {
			// The test's own context has ended by now.
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			journal, err := m.Run(ctx, "journalctl", "-b", "-n", "80", "-o", "short-precise", "--no-pager")
			tb.Logf("the journal of %s ends (%v):\n%s", m.name, err, journal)
		}
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}
