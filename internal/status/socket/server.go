// Package socket carries the status from the daemon to whoever asks, over a stream socket in the
// runtime directory: [Server] answers any user with one JSON document, [Ask] gets it, and a
// [Producer] makes one document for all who wait.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/event"
)

// Name is the name of the socket in the runtime directory. A client gets one JSON
// document and the end of the stream; nothing is read from it.
const Name = "status"

const (
	// mostClients are served at a time; others wait in the queue of the kernel.
	mostClients = 128
	// mostOfUser bounds the clients of one user other than root, so that one user cannot keep
	// the others out.
	mostOfUser = 96
	// sendTimeout is how long one client may take in all.
	sendTimeout = 2 * time.Second
	// sendBuffer is how many bytes the kernel keeps for a client that does not read.
	sendBuffer = 64 << 10
)

// A Server answers on the socket.
type Server struct {
	listener *net.UnixListener
	log      *slog.Logger
	// document returns what is sent. It may be asked by many at once.
	document func(context.Context) ([]byte, error)

	path string
	// made is the socket's file.
	made fs.FileInfo

	mu    sync.Mutex
	users map[uint32]int
}

// Stands reports whether others find the socket.
func (s *Server) Stands() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.made, now)
}

// Listen makes the socket in the runtime directory, for everybody.
func Listen(runtime string, log *slog.Logger, document func(context.Context) ([]byte, error)) (*Server, error) {
	path := filepath.Join(runtime, Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the status socket of an earlier process: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the status socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { //nolint:gosec // status is for everybody
		return nil, errors.Join(fmt.Errorf("opening the status socket for everybody: %w", err), l.Close())
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the status socket: %w", err), l.Close())
	}
	return &Server{listener: l, log: log, document: document, path: path, made: made, users: map[uint32]int{}}, nil
}

// Run answers until ctx is done. It takes the socket away.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	free := make(chan struct{}, mostClients)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-free
			if ctx.Err() != nil {
				return nil
			}
			// Too many open files, for one: others end in a moment.
			s.log.LogAttrs(ctx, event.LevelNotice, "request for status not taken", slog.String("error", err.Error()))
			timer := time.NewTimer(time.Second)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			continue
		}
		clients.Go(func() {
			defer func() { <-free }()
			s.serve(ctx, conn)
		})
	}
}

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	uid, err := userOf(conn)
	if err != nil || !s.enter(uid) {
		return
	}
	defer s.leave(uid)
	_ = conn.SetWriteBuffer(sendBuffer) // else it is the system's default
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return
	}
	document, err := s.document(ctx)
	if err != nil {
		return // The client reads the host by itself.
	}
	_, _ = conn.Write(document) // A client that has gone is no fault.
}

func (s *Server) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid != 0 && s.users[uid] >= mostOfUser {
		return false
	}
	s.users[uid]++
	return true
}

func (s *Server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[uid]--; s.users[uid] == 0 {
		delete(s.users, uid)
	}
}

func userOf(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var failure error
	if err := raw.Control(func(fd uintptr) {
		credentials, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if failure != nil {
		return 0, failure
	}
	return credentials.Uid, nil
}
