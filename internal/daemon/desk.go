package daemon

import (
	"context"
	"log/slog"
	"sync"

	"multihomed/internal/status/socket"
)

// A desk answers on the socket of the status. It outlives a change of the configuration: who asks
// meanwhile waits for the answer of the next parts, and is not told that nobody serves.
type desk struct {
	mu sync.Mutex
	// server is nil if the socket could not be made.
	server  *socket.Server
	running sync.WaitGroup
	stop    context.CancelFunc
	// producer is that of the parts, until living is done; nil while there are none.
	producer *socket.Producer
	living   context.Context //nolint:containedctx // that of the producer
	// turned is closed, and renewed, when a producer comes.
	turned chan struct{}
}

func newDesk() *desk { return &desk{turned: make(chan struct{})} }

// listen makes the socket, unless it stands.
func (d *desk) listen(runtime string, log *slog.Logger) error {
	if d.server != nil && d.server.Stands() {
		return nil
	}
	d.close()
	server, err := socket.Listen(runtime, log, d.document)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	d.server, d.stop = server, stop
	d.running.Go(func() { _ = server.Run(ctx) }) // It ends by stop alone.
	return nil
}

// stands reports whether others find the socket, if it could be made.
func (d *desk) stands() bool { return d.server == nil || d.server.Stands() }

// close takes the socket away.
func (d *desk) close() {
	if d.server != nil {
		d.stop()
		d.running.Wait()
		d.server = nil
	}
}

// serve has a producer answer until ctx is done.
func (d *desk) serve(ctx context.Context, p *socket.Producer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.producer, d.living = p, ctx
	close(d.turned)
	d.turned = make(chan struct{})
}

// document returns a document of the parts that are there, or come.
func (d *desk) document(ctx context.Context) ([]byte, error) {
	for {
		d.mu.Lock()
		p, living, turned := d.producer, d.living, d.turned
		d.mu.Unlock()
		if p != nil && living.Err() == nil {
			asking, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(living, cancel)
			document, err := p.Document(asking)
			stop()
			cancel()
			if err == nil || living.Err() == nil {
				return document, err
			}
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
