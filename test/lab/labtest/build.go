package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// names are those of the program that its own is not: symbolic links to it.
var names = []string{"multihomectl", "multihomed-dispatcher", "multihomed-prober", "multihomed-binder"}

var built struct {
	sync.Mutex
	dir string
	err error
}

// ProgramsEnv names a directory of programs that are built already, for where
// building takes too long: a virtual machine.
const ProgramsEnv = "MULTIHOMED_TEST_PROGRAMS"

// Links gives the program in a directory all of its names.
func Links(dir string) error {
	for _, name := range names {
		if err := os.Symlink("multihomed", filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("giving the program its names: %w", err)
		}
	}
	return nil
}

// Build builds the program with the race detector, once for all tests of the
// process, and returns the path of one of its names; or it takes that of ProgramsEnv.
// Everybody may run it.
func Build(name string) (string, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("looking for a program of %s: %w", ProgramsEnv, err)
		}
		return path, nil
	}
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "multihomed-programs")
		if err != nil {
			return "", fmt.Errorf("making a directory for the programs: %w", err)
		}
		built.dir, built.err = dir, build(dir)
	}
	return filepath.Join(built.dir, name), built.err
}

func build(dir string) error {
	// Tests run programs as other users, too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("opening the directory of the programs: %w", err)
	}
	cmd := exec.CommandContext(context.Background(), "go", "build", "-race", "-buildvcs=false", "-o", dir+"/", "multihomed/cmd/multihomed")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return Links(dir)
}
