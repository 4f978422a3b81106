package lockfile_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"multihomed/internal/lockfile"
)

// holdVariable names a lock for a process that takes it and stays.
const holdVariable = "MULTIHOMED_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdVariable); path != "" {
		lock, err := lockfile.TryLock(path)
		fmt.Println("locked", err)
		// Until the parent closes the pipe or kills us.
		bufio.NewScanner(os.Stdin).Scan()
		if lock != nil {
			fmt.Println("ended", lock.Close())
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// hold starts a process that holds the lock; ending it lets go in an orderly way.
func hold(t *testing.T, path string) (child *exec.Cmd, end func()) {
	t.Helper()
	child = exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), holdVariable+"="+path)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "locked <nil>" {
		t.Fatalf("the child says %q", lines.Text())
	}
	return child, func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if !lines.Scan() || lines.Text() != "ended <nil>" {
			t.Errorf("the child says %q", lines.Text())
		}
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func kill(t *testing.T, child *exec.Cmd) {
	t.Helper()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Error("the child was not killed")
	}
}

func TestHolderIsNamedAndItsDeathFrees(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	child, _ := hold(t, path)
	_, err := lockfile.TryLock(path)
	held, ok := errors.AsType[*lockfile.HeldError](err)
	if !ok || held.PID != child.Process.Pid || held.Path != path {
		t.Fatalf("error %v, want one that names process %d", err, child.Process.Pid)
	}
	if !strings.Contains(err.Error(), strconv.Itoa(child.Process.Pid)) || !strings.Contains(err.Error(), "to fix:") {
		t.Errorf("error %q", err)
	}
	kill(t, child)
	lock, err := lockfile.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

func TestHeld(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	expect := func(want bool) {
		t.Helper()
		if _, held, err := lockfile.Holder(path); held != want || err != nil {
			t.Errorf("held: %v, %v; want %v", held, err, want)
		}
	}
	expect(false)
	_, end := hold(t, path)
	expect(true)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others must not be able to hold the lock", info, err)
	}
	end()
	expect(false)
}

func TestWaitUntilTheHolderEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "orderly"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), lockfile.Name)
			child, end := hold(t, path)
			done := make(chan error)
			go func() {
				lock, err := lockfile.Wait(t.Context(), path)
				if err == nil {
					err = lock.Close()
				}
				done <- err
			}()
			if how == "killed" {
				kill(t, child)
			} else {
				end()
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	lock, err := lockfile.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := lockfile.Wait(ctx, path)
		done <- err
	}()
	cancel()
	err = <-done
	held, ok := errors.AsType[*lockfile.HeldError](err)
	if !errors.Is(err, context.Canceled) || !ok || held.PID != os.Getpid() {
		t.Errorf("error %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	// Whoever waited in vain lets go at once.
	again, err := lockfile.Wait(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	var inside atomic.Int32
	done := make(chan error)
	const workers = 8
	for range workers {
		go func() {
			var errs []error
			for range 50 {
				lock, err := lockfile.Wait(t.Context(), path)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				if inside.Add(1) != 1 {
					errs = append(errs, errors.New("two hold the lock"))
				}
				inside.Add(-1)
				errs = append(errs, lock.Close())
			}
			done <- errors.Join(errs...)
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestReplacedFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	_, end := hold(t, path)
	done := make(chan error)
	go func() {
		lock, err := lockfile.Wait(t.Context(), path)
		if err == nil {
			var content []byte
			content, err = os.ReadFile(path)
			if strings.TrimSpace(string(content)) != strconv.Itoa(os.Getpid()) {
				err = errors.Join(err, fmt.Errorf("the file at the path holds %q: the lock is on another one", content))
			}
			err = errors.Join(err, lock.Close())
		}
		done <- err
	}()
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	link, pipe, nested := filepath.Join(dir, "link"), filepath.Join(dir, "pipe"), filepath.Join(dir, "none", "lock")
	if err := errors.Join(os.WriteFile(target, []byte("keep"), 0o600), os.Symlink(target, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{link: "symbolic link", pipe: "not a regular file", dir: "is a directory", nested: "no such file"} {
		_, err := lockfile.TryLock(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
	if content, err := os.ReadFile(target); err != nil || string(content) != "keep" {
		t.Errorf("the target of the link holds %q, %v", content, err)
	}
}

func TestHolderThatWroteNothing(t *testing.T) {
	t.Parallel()
	// Whatever the file says, the kernel knows.
	path := filepath.Join(t.TempDir(), lockfile.Name)
	for _, content := range []string{"", "x\n", "-5\n", strings.Repeat("9", 100)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		_, err = lockfile.TryLock(path)
		if held, ok := errors.AsType[*lockfile.HeldError](err); !ok || held.PID != os.Getpid() {
			t.Errorf("content %q: error %v", content, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
