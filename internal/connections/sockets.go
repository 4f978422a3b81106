package connections

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"multihomed/internal/sockdiag"
)

// maxChosen bounds how many sockets Close keeps in memory at a time (200 bytes each), maxRounds how
// often it looks for more.
const (
	maxChosen = 16384
	maxRounds = 16
)

// Sockets closes connections of dead links. Open it with OpenSockets in the network namespace of the
// sockets. Its methods may be called by several goroutines; they wait for each other.
type Sockets struct {
	mu     sync.Mutex
	diag   *sockdiag.Conn
	routes *connection
}

// OpenSockets opens it. It needs no rights.
func OpenSockets() (*Sockets, error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, err
	}
	routes, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, diag.Close())
	}
	return &Sockets{diag: diag, routes: routes}, nil
}

// Shut closes it.
func (s *Sockets) Shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes.close()
	return s.diag.Close()
}

// Closed counts the sockets of a dead link by what happened to them: Closed[Close] were closed.
type Closed [verdicts]int

// Close closes the TCP connections that hang on a dead link: with its source, an off-link peer that
// has been silent since the death, and a process that holds it. The process gets ECONNABORTED from
// the call that it waits in, or from its next one. The owner of a Multipath TCP connection that has no
// other subflow gets ENOTCONN after net.mptcp.close_timeout (60 s).
//
// UDP is left alone: NetworkManager's DHCP client has a socket with the link's address, and other
// owners of UDP sockets repeat by themselves.
//
// Call it once for each death. A connection that is made later chose the link knowingly.
//
// The error is [sockdiag.ErrUnsupported] or [sockdiag.ErrNoDestroy] if the kernel cannot do it. Of
// other errors it gives the first, and goes on with the next socket.
func (s *Sockets) Close(ctx context.Context, d Dead) (Closed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var total Closed
	if len(d.Sources) == 0 {
		return total, nil
	}
	for range maxRounds {
		round, more, err := s.closeSome(ctx, &d)
		// Sockets that stay are counted by the last round, which has seen all of them that are left.
		round[Close] += total[Close]
		progress := round[Close] > total[Close]
		total = round
		if err != nil || !more || !progress {
			return total, err
		}
	}
	return total, nil
}

func (s *Sockets) closeSome(ctx context.Context, d *Dead) (count Closed, more bool, err error) {
	var chosen []sockdiag.Socket
	multipath := false
	err = s.diag.Dump(ctx, sockdiag.Query{Sources: d.Sources, States: closing}, func(socket *sockdiag.Socket) bool {
		verdict := d.Judge(socket)
		if verdict != Close {
			count[verdict]++
			return true
		}
		multipath = multipath || socket.MPTCP
		chosen = append(chosen, *socket)
		more = len(chosen) == maxChosen
		return !more
	})
	if err != nil {
		return count, false, err
	}
	alive, err := s.survivors(ctx, d, multipath)
	if err != nil {
		return count, false, err
	}
	answers := map[question]bool{}
	var failed error
	for i := range chosen {
		socket := &chosen[i]
		verdict, err := s.last(d, socket, alive, answers)
		if err == nil && verdict == Close {
			err = s.diag.Destroy(ctx, socket)
		}
		switch {
		case errors.Is(err, sockdiag.ErrGone):
		case errors.Is(err, sockdiag.ErrNoDestroy), ctx.Err() != nil:
			return count, false, err
		case err != nil:
			if failed == nil {
				failed = err
			}
		default:
			count[verdict]++
		}
	}
	return count, more, failed
}

// survivors returns the tokens of Multipath TCP connections that another link keeps alive.
func (s *Sockets) survivors(ctx context.Context, d *Dead, multipath bool) (map[uint32]struct{}, error) {
	if !multipath {
		return nil, nil
	}
	alive := map[uint32]struct{}{}
	err := s.diag.Dump(ctx, sockdiag.Query{States: sockdiag.Set(sockdiag.Established)}, func(socket *sockdiag.Socket) bool {
		if socket.Token != 0 && d.Survives(socket) {
			alive[socket.Token] = struct{}{}
		}
		return len(alive) < maxChosen
	})
	if err != nil {
		return nil, fmt.Errorf("looking for subflows by other links: %w", err)
	}
	return alive, nil
}

// last is the last word on a socket that Judge would close.
func (s *Sockets) last(d *Dead, socket *sockdiag.Socket, alive map[uint32]struct{}, answers map[question]bool) (Verdict, error) {
	if _, survives := alive[socket.Token]; survives && socket.MPTCP {
		return Multipath, nil
	}
	q := questionOf(socket)
	leaves, known := answers[q]
	if !known {
		route, err := ask(s.routes, q)
		if err != nil {
			return Close, err
		}
		leaves = d.Leaves(route)
		answers[q] = leaves
	}
	if !leaves {
		return Near, nil
	}
	return Close, nil
}
