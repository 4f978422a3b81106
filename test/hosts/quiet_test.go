package hosts_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// quiet tells how long no rule, route or link has changed.
type quiet struct{ last atomic.Int64 }

// still is how long the kernel must have been left alone for an answer to count
// as the last word. The daemon answers an event within milliseconds.
const still = 120 * time.Millisecond

func watchRouting(t *testing.T) *quiet {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		t.Fatalf("watching the kernel's routing: %v", err)
	}
	q := &quiet{}
	q.last.Store(time.Now().UnixNano())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, _, err := s.Receive()
			if err != nil && err != unix.ENOBUFS && err != unix.EINTR { //nolint:errorlint // the library returns the number
				return
			}
			q.last.Store(time.Now().UnixNano())
		}
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return q
}

// settled is an error until the kernel has been left alone for long enough.
func (q *quiet) settled() error {
	if d := time.Since(time.Unix(0, q.last.Load())); d < still {
		return fmt.Errorf("the kernel's routing changed %v ago", d.Round(time.Millisecond))
	}
	return nil
}
