package unixgram_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/unixgram"
	"multihomed/test/lab/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func listen(t *testing.T, address unixgram.Address) *unixgram.Conn {
	t.Helper()
	conn, err := unixgram.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func abstract(t *testing.T, name string) unixgram.Address {
	t.Helper()
	address, err := unixgram.Abstract(name)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func send(t *testing.T, c *unixgram.Conn, to unixgram.Address, payload string) {
	t.Helper()
	if err := c.Send(to, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *unixgram.Conn) unixgram.Datagram {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	d, err := c.Receive(make([]byte, 1024))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// An address is told and answered to the byte: what ends in NULs, what does
// not, a path, and one that the kernel chose.
func TestAddressesAreExact(t *testing.T) {
	server := listen(t, abstract(t, "server").Padded())
	for name, address := range map[string]unixgram.Address{
		"exact":     abstract(t, "client"),
		"padded":    abstract(t, "client").Padded(),
		"one NUL":   abstract(t, "client") + "\x00",
		"full":      abstract(t, strings.Repeat("x", 107)),
		"path":      unixgram.Address(filepath.Join(t.TempDir(), "client")),
		"long path": unixgram.Address("/tmp/" + strings.Repeat("y", 103)),
	} {
		t.Run(name, func(t *testing.T) {
			client := listen(t, address)
			if !address.IsAbstract() {
				t.Cleanup(func() { _ = os.Remove(string(address)) })
			}
			send(t, client, server.LocalAddress(), "question")
			d := receive(t, server)
			if d.From != client.LocalAddress() || string(d.Payload) != "question" {
				t.Errorf("got %q from %q, want it from %q", d.Payload, d.From, client.LocalAddress())
			}
			if want := address; address.IsAbstract() && d.From != want {
				t.Errorf("from %q, want %q", d.From, want)
			}
			send(t, server, d.From, "answer")
			if d = receive(t, client); string(d.Payload) != "answer" || d.From != server.LocalAddress() {
				t.Errorf("got %q from %q", d.Payload, d.From)
			}
		})
	}
}

// "\0name" and "\0name\0\0..." are two sockets.
func TestPaddingIsAnotherAddress(t *testing.T) {
	listen(t, abstract(t, "name"))
	sender := listen(t, abstract(t, "sender"))
	if err := sender.Send(abstract(t, "name").Padded(), nil); !errors.Is(err, unixgram.ErrNobody) {
		t.Errorf("sending to the padded address: %v", err)
	}
	listen(t, abstract(t, "name").Padded())
	_, err := unixgram.Listen(abstract(t, "name"))
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "stop the program") {
		t.Errorf("a name that is taken: %v", err)
	}
}

// The kernel says who sends, also for a sender without a name.
func TestCredentials(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	claim := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: 4711, Gid: 4712})
	if err := unix.Sendmsg(fd, []byte("x"), claim, &unix.SockaddrUnix{Name: "@server"}, 0); err != nil {
		t.Fatal(err) // root may send as anybody
	}
	if d := receive(t, server); d.UID != 4711 || d.GID != 4712 || d.From != "" || d.PID != int32(os.Getpid()) {
		t.Errorf("got %+v", d)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrUnix{Name: "@server"}); err != nil {
		t.Fatal(err)
	}
	if d := receive(t, server); d.UID != 0 || d.From != "" || d.PID != int32(os.Getpid()) {
		t.Errorf("got %+v", d)
	}
}

// Descriptors that a stranger passes are not kept: the pipe's end is closed as
// soon as the test has closed its own.
func TestDescriptorsAreDropped(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	rights := unix.UnixRights(int(writer.Fd()), int(writer.Fd()))
	if err := unix.Sendmsg(fd, []byte("take this"), rights, &unix.SockaddrUnix{Name: "@server"}, 0); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if d := receive(t, server); string(d.Payload) != "take this" || d.PID != int32(os.Getpid()) {
		t.Errorf("got %+v", d)
	}
	if err := reader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := reader.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the pipe is still open somewhere: %d, %v", n, err)
	}
}

func TestTruncatedAndEmpty(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	client := listen(t, abstract(t, "client"))
	send(t, client, server.LocalAddress(), "longer than eight")
	send(t, client, server.LocalAddress(), "")
	send(t, client, server.LocalAddress(), "12345678")
	buffer := make([]byte, 8)
	for _, want := range []struct {
		payload   string
		truncated bool
	}{{"longer t", true}, {"", false}, {"12345678", false}} {
		d, got, err := server.TryReceive(buffer)
		if err != nil || !got || string(d.Payload) != want.payload || d.Truncated != want.truncated {
			t.Errorf("got %q, truncated %t, %v; want %+v", d.Payload, d.Truncated, err, want)
		}
	}
	if _, got, err := server.TryReceive(buffer); got || err != nil {
		t.Errorf("from an empty queue: %t, %v", got, err)
	}
}

// fill makes the receiver's queue full.
func fill(t *testing.T, c *unixgram.Conn, to unixgram.Address) int {
	t.Helper()
	for n := range 100000 {
		if err := c.Send(to, []byte("filler")); errors.Is(err, unixgram.ErrFull) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the queue takes everything")
	return 0
}

func TestSendNeverWaits(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	client := listen(t, abstract(t, "client"))
	if n := fill(t, client, server.LocalAddress()); n == 0 {
		t.Error("not one datagram found room")
	}
	for _, to := range []unixgram.Address{abstract(t, "nobody"), "/no/such/path", "/dev/null"} {
		if err := client.Send(to, nil); !errors.Is(err, unixgram.ErrNobody) {
			t.Errorf("sending to %s: %v", to, err)
		}
	}
	if err := client.Send("", nil); err == nil {
		t.Error("sending to a socket without a name is no error")
	}
}

// A socket that is connected takes datagrams only from there.
func TestDenied(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	client := listen(t, abstract(t, "client"))
	stranger := listen(t, abstract(t, "stranger"))
	if err := client.SendWait(t.Context(), server.LocalAddress(), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := stranger.Send(client.LocalAddress(), nil); !errors.Is(err, unixgram.ErrDenied) {
		t.Errorf("a stranger sends: %v", err)
	}
	send(t, server, client.LocalAddress(), "hello back")
	if d := receive(t, client); string(d.Payload) != "hello back" {
		t.Errorf("got %q", d.Payload)
	}
}

// Many senders wait for one queue, and all get their turn.
func TestSendWait(t *testing.T) {
	server := listen(t, abstract(t, "server").Padded())
	full := fill(t, listen(t, abstract(t, "filler")), server.LocalAddress())
	const senders, each = 8, 50
	var group sync.WaitGroup
	for i := range senders {
		client := listen(t, abstract(t, fmt.Sprint("client ", i)))
		group.Go(func() {
			for j := range each {
				if err := client.SendWait(t.Context(), server.LocalAddress(), fmt.Appendf(nil, "%d %d", i, j)); err != nil {
					t.Errorf("sender %d: %v", i, err)
				}
			}
		})
	}
	seen := map[string]int{}
	for range full + senders*each {
		seen[string(receive(t, server).Payload)]++
	}
	group.Wait()
	if len(seen) != senders*each+1 {
		t.Errorf("%d different datagrams came, want %d", len(seen), senders*each+1)
	}
}

func TestSendWaitEnds(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	client := listen(t, abstract(t, "client"))
	fill(t, client, server.LocalAddress())
	why := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, why)
	defer cancel()
	err := client.SendWait(ctx, server.LocalAddress(), nil)
	if !errors.Is(err, why) || !errors.Is(err, unixgram.ErrFull) {
		t.Errorf("after the context ended: %v", err)
	}
	if err := client.SendWait(ctx, server.LocalAddress(), nil); err == nil {
		t.Error("with a context that is over: no error")
	}
	receive(t, server)
	if err := client.SendWait(t.Context(), server.LocalAddress(), nil); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// The receiver ends while somebody waits for its queue, and comes again.
func TestSendWaitSeesTheReceiverGo(t *testing.T) {
	address := abstract(t, "server").Padded()
	server, client := listen(t, address), listen(t, abstract(t, "client"))
	fill(t, client, address)
	done := make(chan error, 1)
	go func() { done <- client.SendWait(t.Context(), address, nil) }()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, unixgram.ErrNobody) {
		t.Errorf("while it was full: %v", err)
	}
	for range 2 {
		server = listen(t, address)
		if err := client.SendWait(t.Context(), address, []byte("again")); err != nil {
			t.Fatal(err)
		}
		if d := receive(t, server); string(d.Payload) != "again" {
			t.Errorf("got %q", d.Payload)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	server, client := listen(t, abstract(t, "server")), listen(t, abstract(t, "client"))
	fill(t, client, server.LocalAddress())
	done := make(chan error, 2)
	go func() {
		_, err := client.Receive(make([]byte, 8))
		done <- err
	}()
	go func() { done <- client.SendWait(t.Context(), server.LocalAddress(), nil) }()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	_, _, err := client.TryReceive(make([]byte, 8))
	for _, err := range []error{err, client.Send(server.LocalAddress(), nil), client.SetReadDeadline(time.Now())} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("afterwards: %v", err)
		}
	}
}

func TestDeadline(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	if err := server.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Receive(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// inherited makes a socket the way a service manager does: blocking, and
// without credentials.
func inherited(t *testing.T, domain, kind int, address unix.Sockaddr) *os.File {
	t.Helper()
	fd, err := unix.Socket(domain, kind, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "inherited")
	t.Cleanup(func() { _ = file.Close() })
	if err := unix.Bind(fd, address); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestFromFile(t *testing.T) {
	file := inherited(t, unix.AF_UNIX, unix.SOCK_DGRAM, &unix.SockaddrUnix{Name: "@activated"})
	server, err := unixgram.FromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if want := abstract(t, "activated"); server.LocalAddress() != want {
		t.Errorf("its address is %q, want %q", server.LocalAddress(), want)
	}
	client := listen(t, abstract(t, "client"))
	send(t, client, server.LocalAddress(), "hello")
	if d := receive(t, server); d.PID != int32(os.Getpid()) || string(d.Payload) != "hello" {
		t.Errorf("got %+v", d)
	}
}

func TestFromFileRefuses(t *testing.T) {
	stream := inherited(t, unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: "@stream"})
	udp := inherited(t, unix.AF_INET, unix.SOCK_DGRAM, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	plain, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []*os.File{stream, udp, plain} {
		if _, err := unixgram.FromFile(file); err == nil || !strings.Contains(err.Error(), "taking over socket "+file.Name()) {
			t.Errorf("got %v", err)
		}
	}
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unixgram.FromFile(plain); err == nil {
		t.Error("a closed file is no error")
	}
}

func TestAbstract(t *testing.T) {
	for _, name := range []string{"", "a\x00b", strings.Repeat("x", 108)} {
		if address, err := unixgram.Abstract(name); err == nil {
			t.Errorf("Abstract(%q) = %q", name, address)
		}
	}
	for address, want := range map[unixgram.Address]string{
		"":                               "(no name)",
		abstract(t, "tas_socket"):        "@tas_socket",
		abstract(t, "padded").Padded():   "@padded",
		"/run/path\x00":                  "/run/path",
		abstract(t, "evil\x1b[2Jname\n"): `"@evil\x1b[2Jname\n"`,
	} {
		if got := address.String(); got != want {
			t.Errorf("%q is shown as %s, want %s", string(address), got, want)
		}
	}
	if a := abstract(t, "x").Padded(); len(a) != 108 || a.Padded() != a {
		t.Errorf("padded to %d bytes", len(a))
	}
}

// Package net sees the same: it can send here, and be answered.
func TestPackageNet(t *testing.T) {
	server := listen(t, abstract(t, "server"))
	client, err := net.DialUnix("unixgram", &net.UnixAddr{Name: "@client", Net: "unixgram"}, &net.UnixAddr{Name: "@server", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	send(t, server, receive(t, server).From, "pong")
	buffer := make([]byte, 8)
	if n, err := client.Read(buffer); err != nil || !bytes.Equal(buffer[:n], []byte("pong")) {
		t.Errorf("got %q, %v", buffer[:n], err)
	}
}
