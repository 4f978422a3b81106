package config_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"multihomed/internal/config"
)

// loadVariable names a file for a process that loads it as nobody.
const loadVariable = "MULTIHOMED_TEST_LOAD"

func TestMain(m *testing.M) {
	if path := os.Getenv(loadVariable); path != "" {
		_, err := config.Load(path)
		os.Stdout.WriteString(err.Error())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPermissionIsNamed(t *testing.T) {
	t.Parallel()
	// Below a directory that nobody may search t.TempDir would not do.
	dir, err := os.MkdirTemp("", "multihomed-config-") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "multihomed.toml")
	write(t, path, "")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), program)
	child.Env = append(os.Environ(), loadVariable+"="+path)
	child.Dir = "/"
	if os.Geteuid() == 0 {
		// Root may read any file.
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := child.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); !strings.Contains(got, path) || !strings.Contains(got, "permission denied") || !strings.HasSuffix(got, "to fix: chmod a+x "+dir+" && chmod a+r "+path) {
		t.Errorf("error %q", got)
	}
}
