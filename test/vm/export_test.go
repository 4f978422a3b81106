package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

var ErrNoTest = errNoTest

func (m *Machine) RunTest(ctx context.Context, pkg, run string) error {
	return m.runTest(ctx, pkg, run, Command{})
}

// CheckProgram is checkPrograms of one.
func CheckProgram(program, pkg string) error { return checkPrograms(requirement{program, pkg}) }

// QemuRuns reports whether the machine has a session.
func QemuRuns(m *Machine) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on != nil
}

// Children are the names of this process's children.
func Children() (string, error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return "", err
	}
	var names strings.Builder
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return "", err
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			if name, err := os.ReadFile(filepath.Join("/proc", pid, "comm")); err == nil {
				names.Write(name)
			}
		}
	}
	return names.String(), nil
}
