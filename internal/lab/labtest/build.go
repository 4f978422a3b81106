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

// Build builds a program of cmd/ with the race detector, once for all tests of
// the process, and returns its path. Everybody may run it.
func Build(program string) (string, error) {
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
