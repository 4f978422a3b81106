package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

var built struct {
	sync.Mutex
	dir      string
	programs map[string]error
}

// ProgramsEnv names a directory of programs that are built already, for where
// building takes too long: a virtual machine.
const ProgramsEnv = "MULTIHOMED_TEST_PROGRAMS"

// Build builds a program of cmd/ with the race detector, once for all tests of
// the process, and returns its path; or it takes that of ProgramsEnv. Everybody may
// run it.
func Build(program string) (string, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		path := filepath.Join(dir, program)
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
		// Tests run programs as other users, too.
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", fmt.Errorf("opening the directory of the programs: %w", err)
		}
		built.dir, built.programs = dir, map[string]error{}
	}
	path := filepath.Join(built.dir, program)
	if err, done := built.programs[program]; done {
		return path, err
	}
	cmd := exec.CommandContext(context.Background(), "go", "build", "-race", "-buildvcs=false", "-o", path, "multihomed/cmd/"+program)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building %s: %w\n%s", program, err, out)
	}
	built.programs[program] = err
	return path, err
}
