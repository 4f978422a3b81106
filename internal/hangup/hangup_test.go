package hangup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/hangup"
)

// role is the variable that makes this program the one that is tested.
const role = "HANGUP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "takes":
		kill()
		<-hangup.Taken()
		fmt.Print("taken")
	case "gives back":
		hangup.GiveBack()
		kill()
		ends()
	case "gives back later":
		kill()
		// Until the runtime has delivered it.
		for len(hangup.Taken()) == 0 {
			runtime.Gosched()
		}
		hangup.GiveBack()
		ends()
	default:
		os.Exit(m.Run())
	}
}

func kill() {
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		panic(err)
	}
}

// ends waits until the signal ends this process, or says that the process ignores it (proc(5), SigIgn).
func ends() {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nSigIgn:")
	word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	ignored, err := strconv.ParseUint(word, 16, 64)
	if err != nil {
		panic(err)
	}
	if ignored&1 != 0 {
		fmt.Print("lives")
		return
	}
	// The test holds the other end.
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		panic(err)
	}
}

// TestHangup: the signal ends no program that takes it, and every other one, unless its caller
// ignores the signal.
func TestHangup(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		role, says    string
		ignored, dies bool
	}{
		{"takes", "taken", false, false},
		{"takes", "taken", true, false},
		{"gives back", "", false, true},
		{"gives back", "lives", true, false},
		{"gives back later", "", false, true},
		{"gives back later", "lives", true, false},
	} {
		// env(1) also undoes what the caller of this test ignores.
		signals := "--default-signal=HUP"
		if c.ignored {
			signals = "--ignore-signal=HUP"
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		program := exec.CommandContext(ctx, "env", signals, self)
		program.Env = append(os.Environ(), role+"="+c.role)
		if _, err := program.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		program.Stdout = &out
		err := program.Run()
		cancel()
		died := false
		if exit, is := errors.AsType[*exec.ExitError](err); is {
			status, is := exit.Sys().(syscall.WaitStatus)
			died = is && status.Signaled() && status.Signal() == syscall.SIGHUP
		}
		if died != c.dies || (err != nil) != c.dies || out.String() != c.says {
			t.Errorf("%+v: %v, %q", c, err, out.String())
		}
	}
}
