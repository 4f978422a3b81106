package daemon_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/binder/client"
	"multihomed/internal/binder/wire"
	"multihomed/internal/binding"
	"multihomed/internal/daemon"
	"multihomed/internal/holding"
	"multihomed/routing"
)

var (
	markOfWan1 = routing.Mark{Value: 0x81000000, Mask: 0xff000000}
	markOfWan0 = routing.Mark{Value: 0x82000000, Mask: 0xff000000}
)

func uids(first, last uint32) routing.UIDRange {
	return routing.UIDRange{Set: true, First: first, Last: last}
}

// A bindingHost is a helper and a systemd, which note what they are asked for.
type bindingHost struct {
	t      *testing.T
	led    []binding.Led
	blind  bool
	fail   error
	asked  []wire.Users
	events []string
	stored map[string]int
	faults []string
	times  []time.Time
	maps   holding.Maps
	names  daemon.UserNames
}

func newBindingHost(t *testing.T) *bindingHost {
	t.Helper()
	h := &bindingHost{t: t, stored: map[string]int{}}
	h.names = daemon.NewUserNames(daemon.UserNamesOptions{
		Led: func() ([]binding.Led, bool) { return h.led, !h.blind },
		Bind: func(u wire.Users, _ *os.File) ([]*os.File, *os.File, error) {
			h.times = append(h.times, time.Now())
			if h.fail != nil {
				return nil, nil, h.fail
			}
			h.asked = append(h.asked, u)
			h.events = append(h.events, "attach")
			if u.Names == wire.NewMap {
				return []*os.File{h.file(), h.file()}, h.file(), nil
			}
			return []*os.File{h.file()}, nil, nil
		},
		Maps: &h.maps,
		Store: func(name string, _ *os.File) error {
			h.stored[name]++
			return nil
		},
		Forget: func(name string) {
			delete(h.stored, name)
			h.events = append(h.events, "forget")
		},
		Fault: func(err error) {
			text := ""
			if err != nil {
				text = err.Error()
			}
			h.faults = append(h.faults, text)
		},
	})
	t.Cleanup(func() {
		if err := errors.Join(h.names.Close(), h.maps.Close()); err != nil {
			t.Error(err)
		}
	})
	return h
}

// file stands for a link or a map.
func (h *bindingHost) file() *os.File {
	h.t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

func (h *bindingHost) keeps(wanted ...binding.Attachment) {
	h.t.Helper()
	if err := h.names.Keep(h.t.Context()); err != nil {
		h.t.Error(err)
	}
	if got := h.names.All(); !slices.Equal(got, wanted) || len(h.stored) != len(wanted) {
		h.t.Errorf("attached:\n%+v\nwant:\n%+v\nsystemd keeps %v", got, wanted, h.stored)
	}
}

// TestProgramsOfUsersFollowWhatIsBound: the first range of a link gets the programs for DNS, a new set is there before the old one
// ends, and the map of a link stays.
func TestProgramsOfUsersFollowWhatIsBound(t *testing.T) {
	h := newBindingHost(t)
	h.led = []binding.Led{{Link: "wan1", Mark: markOfWan1, Users: []routing.UIDRange{uids(1000, 1999), uids(3000, 3000)}}}
	first := binding.Attachment{Link: "wan1", Mark: markOfWan1, Users: uids(1000, 1999), DNS: true}
	second := binding.Attachment{Link: "wan1", Mark: markOfWan1, Users: uids(3000, 3000)}
	h.keeps(first, second)
	h.keeps(first, second)
	if len(h.asked) != 2 || h.asked[0].Names != wire.NewMap || h.asked[1].Names != wire.LeaveNames {
		t.Errorf("asked %+v", h.asked)
	}
	h.events = nil
	h.led[0].Users[0] = uids(1000, 1500)
	first.Users = uids(1000, 1500)
	h.keeps(second, first)
	if !slices.Equal(h.events, []string{"attach", "forget"}) || h.asked[2].Names != wire.OldMap {
		t.Errorf("%q, %+v", h.events, h.asked[2])
	}
	h.blind, h.led = true, nil
	h.keeps(second, first)
	h.blind = false
	h.keeps()
}

// TestWhatAnEarlierProcessAttached stays until the same is attached anew, unless nobody wants it.
func TestWhatAnEarlierProcessAttached(t *testing.T) {
	h := newBindingHost(t)
	wanted := binding.Attachment{Link: "wan1", Mark: markOfWan1, Users: uids(1000, 1999), DNS: true}
	unwanted := binding.Attachment{Mark: markOfWan0, Users: uids(5, 5)}
	for _, a := range []binding.Attachment{wanted, wanted, unwanted} {
		name := daemon.StoreName(a, 7)
		h.stored[name]++
		if !h.names.TakeStored(name, h.file()) {
			t.Errorf("%s is not taken", name)
		}
	}
	h.led = []binding.Led{{Link: "wan1", Mark: markOfWan1, Users: []routing.UIDRange{uids(1000, 1999)}}}
	h.fail = client.ErrAway
	if err := h.names.Keep(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "DNS queries of users 1000-1999, bound to wan1, go where the host's resolver sends them: ") {
		t.Errorf("%v", err)
	}
	if len(h.stored) != 1 || h.stored[daemon.StoreName(wanted, 7)] != 2 {
		t.Errorf("without the helper systemd keeps %v", h.stored)
	}
	h.fail = nil
	h.keeps(wanted)
	if h.stored[daemon.StoreName(wanted, 7)] != 0 {
		t.Errorf("systemd keeps %v", h.stored)
	}
}

// TestAttemptsBecomeRare, and a change of what is bound is tried at once.
func TestAttemptsBecomeRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newBindingHost(t)
		h.led = []binding.Led{{Link: "wan1", Mark: markOfWan1, Users: []routing.UIDRange{uids(1000, 1999)}}}
		h.fail = client.ErrAway
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.names.Run(ctx) }()
		<-time.After(10 * time.Minute)
		synctest.Wait()
		n := len(h.times)
		if n < 5 || n > 12 || h.times[1].Sub(h.times[0]) != daemon.LeastPause || h.times[n-1].Sub(h.times[n-2]) < time.Minute {
			t.Errorf("attempts at %v", h.times)
		}
		h.fail = nil
		h.names.Look()
		synctest.Wait()
		if got := h.names.All(); len(got) != 1 || h.faults[len(h.faults)-1] != "" || !strings.Contains(h.faults[0], client.ErrAway.Error()) {
			t.Errorf("%+v, faults %q", got, h.faults)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestNamesInTheStoreAreParsedStrictly(t *testing.T) {
	t.Parallel()
	a := binding.Attachment{Mark: markOfWan1, Users: uids(1, 4294967294), DNS: true}
	if got, number, is := daemon.ParseStoreName(daemon.StoreName(a, 9)); !is || got != a || number != 9 {
		t.Errorf("%+v, %d, %t", got, number, is)
	}
	for _, name := range []string{
		"", "users-", "dns-map-wan1", "1-2-81000000-ff000000-1-1", "users-1-2-81000000-ff000000-1", "users-1-2-81000000-ff000000-2-1",
		"users-01-2-81000000-ff000000-1-1", "users-1-2-0x81000000-ff000000-1-1", "users-1-4294967296-81000000-ff000000-1-1", "users-1-2-81000000-ff000000-1-1-1", "users--1-2-81000000-ff000000-1",
	} {
		if got, _, is := daemon.ParseStoreName(name); is {
			t.Errorf("%q is %+v", name, got)
		}
	}
}
