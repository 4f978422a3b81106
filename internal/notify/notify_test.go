package notify_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/notify"
)

func TestADescriptorIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := notify.New(slog.New(slog.DiscardHandler))
	t.Setenv("NOTIFY_SOCKET", "")
	if err := n.Keep("dns-map-wan0", os.Stdin); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	if err := n.Keep("dns-map-wan0", os.Stdin); err != nil {
		t.Fatal(err)
	}
	b, room := make([]byte, 100), make([]byte, unix.CmsgSpace(4))
	size, control, _, _, err := l.ReadMsgUnix(b, room)
	if err != nil || string(b[:size]) != "FDSTORE=1\nFDPOLL=0\nFDNAME=dns-map-wan0" || control == 0 {
		t.Errorf("%q, %d bytes of control, %v", b[:size], control, err)
	}
	t.Setenv("NOTIFY_SOCKET", path+"x")
	if err := n.Keep("dns-map-wan0", os.Stdin); err == nil || !strings.Contains(err.Error(), "dns-map-wan0") {
		t.Error(err)
	}
}

// TestNotifier is a life as systemd hears it.
func TestNotifier(t *testing.T) {
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
	t.Setenv("WATCHDOG_USEC", "") // None, whoever runs this test.
	hears := func(want string) {
		t.Helper()
		buffer := make([]byte, 4096)
		n, err := supervisor.Read(buffer)
		if got := string(buffer[:n]); err != nil || !strings.HasPrefix(got, want) {
			t.Fatalf("systemd hears %q (%v), want %q", got, err, want)
		}
	}
	n := notify.New(slog.New(slog.DiscardHandler))
	n.Alive()
	hears("EXTEND_TIMEOUT_USEC=30000000")
	n.Alive() // Between two beats it says nothing more.
	n.Status("waiting: NetworkManager")
	hears("STATUS=waiting: NetworkManager")
	n.Status("waiting: NetworkManager")
	n.Ready()
	hears("READY=1")
	if !n.Reloading() {
		t.Error("it was ready")
	}
	hears("RELOADING=1\nMONOTONIC_USEC=")
	if n.Reloading() {
		t.Error("it reloads already")
	}
	hears("RELOADING=1\nMONOTONIC_USEC=")
	n.Ready()
	hears("READY=1")
	n.Stopping()
	hears("STOPPING=1")
}
