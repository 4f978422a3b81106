package notify_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/notify"
)

// TestDescriptorsAreKeptByName: the manager gets the descriptor itself, and is told to forget it.
func TestDescriptorsAreKeptByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	supervisor, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer supervisor.Close()
	if err := supervisor.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := notify.New(slog.New(slog.DiscardHandler))
	if err := n.Keep("users-1", f); err != nil {
		t.Fatal(err)
	}
	n.Forget("users-1")
	for _, want := range []string{"FDSTORE=1\nFDPOLL=0\nFDNAME=users-1", "FDSTOREREMOVE=1\nFDNAME=users-1"} {
		text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
		length, controlled, _, _, err := supervisor.ReadMsgUnix(text, rights)
		if got := string(text[:length]); err != nil || got != want {
			t.Errorf("systemd hears %q (%v), want %q", got, err, want)
		}
		messages, err := unix.ParseSocketControlMessage(rights[:controlled])
		if passed := len(messages) == 1; err != nil || passed != (want[:8] == "FDSTORE=") {
			t.Errorf("%q comes with %d descriptors, %v", want, len(messages), err)
			continue
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil || len(fds) != 1 || unix.Close(fds[0]) != nil {
				t.Errorf("%v, %v", fds, err)
			}
		}
	}
}
