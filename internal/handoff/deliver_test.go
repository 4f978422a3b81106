package handoff_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/handoff"
	"multihomed/internal/lockfile"
	"multihomed/internal/unixgram"
)

// daemonVariable makes a process of this program a daemon of a kind, in a directory.
const (
	daemonVariable    = "MULTIHOMED_TEST_DAEMON"
	directoryVariable = "MULTIHOMED_TEST_DIRECTORY"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(daemonVariable); kind != "" {
		if err := beDaemon(kind, os.Getenv(directoryVariable)); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beDaemon holds the lock and listens, and says when it does.
func beDaemon(kind, dir string) error {
	var lock *lockfile.Lock
	var err error
	if kind != "without the lock" {
		if lock, err = lockfile.TryLock(filepath.Join(dir, lockfile.Name)); err != nil {
			return err
		}
		defer lock.Close()
	}
	l, err := handoff.Listen(dir)
	if err != nil {
		return err
	}
	if kind == "old" {
		return beOld(dir)
	}
	_, _ = os.Stdout.WriteString("ready\n")
	log := slog.New(slog.DiscardHandler)
	switch kind {
	case "works":
		return l.Run(context.Background(), log, func(m handoff.Message) { m.Acknowledge() })
	case "busy":
		for n := uint64(0); ; n++ {
			_ = n * n
		}
	default:
		return l.Run(context.Background(), log, func(handoff.Message) { select {} })
	}
}

// beOld takes messages, and knows no acknowledgement.
func beOld(dir string) error {
	conn, err := unixgram.Listen(unixgram.Address(filepath.Join(dir, "other")))
	if err == nil {
		err = os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, handoff.Name))
	}
	_, _ = os.Stdout.WriteString("ready\n")
	for err == nil {
		_, err = conn.Receive(make([]byte, 1<<16))
	}
	return err
}

func daemon(t *testing.T, kind, dir string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), program)
	c.Env = append(os.Environ(), daemonVariable+"="+kind, directoryVariable+"="+dir)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%s: %q, %v", kind, line, err)
	}
	return c
}

func TestDeliver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, kind string
		stop       bool
		// ended says that the daemon is killed.
		ended bool
		want  error
	}{
		{"one that works", "works", false, false, nil},
		{"one of a release without acknowledgements", "old", false, false, nil},
		{"one that is stopped", "works", true, true, handoff.ErrNobody},
		{"one that takes the message and hangs", "hangs", false, true, handoff.ErrNobody},
		{"an old one that is stopped", "old", true, true, handoff.ErrNobody},
		{"one that is busy", "busy", false, false, handoff.ErrBusy},
		{"one that has no lock", "without the lock", false, false, handoff.ErrBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d := daemon(t, c.kind, dir)
			if c.stop {
				if err := d.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			began, ended := time.Now(), 0
			err := handoff.Deliver(t.Context(), dir, handoff.Message{Interface: "wan0"}, func(pid int) { ended = pid })
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if took := time.Since(began); c.want != nil && took < handoff.AckTimeout || took > handoff.AckTimeout+5*time.Second {
				t.Errorf("it took %v", took)
			}
			if (ended == d.Process.Pid) != c.ended {
				t.Errorf("ended %d, the daemon is %d", ended, d.Process.Pid)
			}
			if !c.ended {
				return
			}
			lock, err := lockfile.TryLock(filepath.Join(dir, lockfile.Name))
			if err != nil {
				t.Fatalf("the lock is not free: %v", err)
			}
			if err := lock.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := handoff.Deliver(t.Context(), t.TempDir(), handoff.Message{}, func(int) {}); !errors.Is(err, handoff.ErrNobody) {
		t.Errorf("without a daemon: %v", err)
	}
}

// Several who wait for the same one end it once, and nobody who comes after it.
func TestDeliverDoesNotEndTheNextOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := daemon(t, "hangs", dir)
	ended := make(chan int, 8)
	errs := make(chan error, 4)
	for range 4 {
		go func() {
			errs <- handoff.Deliver(t.Context(), dir, handoff.Message{Interface: "wan0"}, func(pid int) { ended <- pid })
		}()
	}
	if err := first.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	second := daemon(t, "works", dir)
	for range 4 {
		if err := <-errs; err != nil && !errors.Is(err, handoff.ErrNobody) {
			t.Error(err)
		}
	}
	close(ended)
	for pid := range ended {
		if pid != first.Process.Pid {
			t.Errorf("%d was ended, the one that hung is %d", pid, first.Process.Pid)
		}
	}
	if err := second.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the next one has ended: %v", err)
	}
	if err := handoff.Deliver(t.Context(), dir, handoff.Message{Interface: "wan0"}, func(int) {}); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// A lock whose taker has ended, and which lives on in a descriptor that another process
// inherited, names nobody.
func TestInheritedLockNamesNobody(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), lockfile.Name)
	// The shell takes the lock with flock(1) and leaves it to sleep(1).
	c := exec.CommandContext(t.Context(), "sh", "-c", `exec 9>"$0"; sh -c 'flock -x 9; sleep 60 & echo $!' | { read -r pid; echo "$pid"; cat >/dev/null; }`, path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		_ = c.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	holder, err := lockfile.OpenHolder(path)
	if err != nil {
		t.Fatal(err)
	}
	if holder == nil {
		return // Its number is free.
	}
	if ended, err := holder.End(t.Context(), path); ended {
		t.Errorf("process %d was ended, %v", holder.PID, err)
	}
	if err := holder.Close(); err != nil {
		t.Error(err)
	}
}
