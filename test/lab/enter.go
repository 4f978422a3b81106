package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The environment variable that tells a copy of the program which stage it is. It
// is removed before the program proper runs, so that its own children can open
// their own lab.
const stageEnv = "MULTIHOMED_LAB_STAGE"

const (
	stageInit   = "init"   // process 1: mounts, reaps orphans, passes signals on
	stageInside = "inside" // the program proper
)

// namespaces is what the lab has for itself.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS

// inside is true in the program proper; everything that changes the network
// refuses to work without it, because it would change the machine.
var inside bool

// Inside reports whether the program runs in a lab.
func Inside() bool { return inside }

var errOutside = errors.New("not inside a lab: call lab.Main first in main or TestMain")

// forwarded are the signals that pass from the program that was started to the
// copy of it in the lab.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT,
	unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH,
}

// Main runs the program again inside a lab, where it calls run and returns what
// run returns. Outside of it, Main does not return: it ends the program with the
// status of the one inside, with 128 plus the signal that ended it, or with 1
// after one line on standard error that names what is missing. Call it before
// anything else: what precedes it happens three times.
//
// The program in the lab sees the machine's files, but has /run, /etc,
// /var/lib and its temporary directory for itself.
func Main(run func() int) int {
	stage := os.Getenv(stageEnv)
	_ = os.Unsetenv(stageEnv)
	step := enter
	switch stage {
	case stageInside:
		inside = true
		return run()
	case stageInit:
		step = initProcess
	}
	code, err := step()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		code = 1
	}
	// Not os.Exit: the race detector sleeps for a second in there, in each of
	// these two processes, to catch races that they do not have.
	unix.Exit(code)
	return code
}

// enter starts process 1 of a new lab and waits for it.
func enter() (int, error) {
	if err := checkRequirements(); err != nil {
		return 0, err
	}
	// No context: what ends this command is the program in it.
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: os.Args}
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: namespaces,
		// Process 1 takes everything in the lab with it, so this one line is
		// the whole clean-up after a SIGKILL or a panic.
		Pdeathsig: syscall.SIGKILL,
		// A Ctrl-C reaches only this process, which passes it on: the program
		// must see it once and not twice.
		Setpgid: true,
	}
	// The kernel sends Pdeathsig when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
			return 0, fmt.Errorf("creating namespaces: %w: CAP_SYS_ADMIN is missing or user.max_*_namespaces is 0 (in a container: run it privileged)", err)
		}
		return 0, fmt.Errorf("creating namespaces: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return 0, fmt.Errorf("waiting for the lab: %w", err)
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// initProcess is process 1 of the lab. It is not the program itself because
// process 1 has to reap every orphan, which would steal the children of os/exec.
func initProcess() (int, error) {
	if os.Getpid() != 1 {
		return 0, fmt.Errorf("%s=%s is set, but this is not process 1: unset it", stageEnv, stageInit)
	}
	env, err := prepareMounts(os.Environ())
	if err != nil {
		return 0, err
	}
	if err := prepareNetwork(); err != nil {
		return 0, err
	}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   append(env, stageEnv+"="+stageInside),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s inside the lab: %w", os.Args[0], err)
	}
	go func() {
		for s := range signals {
			_ = syscall.Kill(pid, s.(syscall.Signal))
		}
	}()
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("waiting for %s: %w", os.Args[0], err)
		case got == pid:
			return exitCode(status), nil
		}
	}
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// SearchPath finds daemons even for a user whose PATH has no sbin.
const SearchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// setenv replaces or adds one variable of an environment.
func setenv(env []string, key, value string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, key+"=") {
			out = append(out, kv)
		}
	}
	return append(out, key+"="+value)
}

func getenv(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}
