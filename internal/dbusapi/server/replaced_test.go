package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/server"
)

// leaving is a backend that has ended when it is asked.
type leaving struct {
	backend
	asked chan struct{}
	err   error
}

func (l *leaving) Do(context.Context, server.Request) (string, error) {
	l.asked <- struct{}{}
	return "", l.err
}

// TestReplaced: what a backend did not begin, the next one does; what it began, nobody does twice.
func TestReplaced(t *testing.T) {
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"not begun", "", server.ErrReplaced},
		{"begun", "kept: the configuration was read again", fmt.Errorf("kept: %w", server.ErrReplaced)},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := &leaving{asked: make(chan struct{}, 1), err: c.err}
			h := open(t, old)
			call := h.manager(h.bus.Connect()).Go(dbusapi.ManagerInterface+".Unbind", 0, nil, "user=daemon")
			<-old.asked
			next := &backend{}
			h.Withdraw()
			h.Serve(next)
			<-call.Done
			if c.err == server.ErrReplaced { //nolint:errorlint // the one that is not wrapped
				if call.Err != nil || fmt.Sprint(call.Body...) != "Unbind[user=daemon]" || next.calls.Load() != 1 {
					t.Errorf("%v, %v, %d calls of the next one", call.Body, call.Err, next.calls.Load())
				}
				return
			}
			if call.Err == nil || !strings.HasPrefix(call.Err.Error(), c.want) || next.calls.Load() != 0 {
				t.Errorf("%v, want %s; %d calls of the next one", call.Err, c.want, next.calls.Load())
			}
		})
	}
}

// TestDenied: why polkit could not be asked.
func TestDenied(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&dbusapi.Error{Name: "org.freedesktop.DBus.Error.ServiceUnknown", Text: "x"}, "polkit does not run on this host"},
		{&dbusapi.Error{Name: "org.freedesktop.DBus.Error.Spawn.ChildExited", Text: "x"}, "polkit does not run on this host"},
		{&dbusapi.Error{Name: dbusapi.AccessDenied, Text: "Rejected send message"}, "the system bus does not let multihomed ask polkit (Rejected send message)"},
		{&dbusapi.Error{Name: "org.freedesktop.DBus.Error.NoReply", Text: "it left"}, "polkit does not answer (it left)"},
		{&dbusapi.Error{Name: "org.freedesktop.PolicyKit1.Error.NotAuthorized", Text: "no owner"}, "polkit refuses to decide about " + dbusapi.ActionSwitch + " (no owner)"},
		{errors.New("late"), "polkit does not answer (late)"},
	} {
		got, is := errors.AsType[*dbusapi.Error](server.Denied(c.err, dbusapi.ActionSwitch))
		if !is || got.Name != dbusapi.AccessDenied || !strings.HasPrefix(got.Text, c.want) || !strings.Contains(got.Text, "to fix: ") {
			t.Errorf("%v: %v, want %s", c.err, got, c.want)
		}
	}
}
