package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/dbusapi"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/failover"
	"multihomed/internal/handoff"
	"multihomed/internal/orders"
	"multihomed/internal/status"
)

// wanted reads a binding. The keys are those of [[bind]], and "runtime".
func (b *onBus) wanted(given map[string]dbus.Variant) (entry config.Bind, runtime bool, err error) {
	var wanted orders.Binding
	var strict, dns bool
	o := options{"link": &wanted.Link, "strict": &strict, "dns": &dns, "inbound": &wanted.Inbound, "runtime": &wanted.Runtime}
	selectors := o.selectors(orders.SelectorKeys())
	if err := o.take(given); err != nil {
		return entry, false, err
	}
	if _, is := given["strict"]; is {
		wanted.Strict = &strict
	}
	if _, is := given["dns"]; is {
		wanted.DNS = &dns
	}
	for key, value := range selectors {
		if _, is := given[key]; !is {
			continue
		}
		if wanted.Selector.Key != "" {
			return entry, false, dbusapi.Errorf(dbusapi.InvalidArgs, "a binding has one selector, and this one has %s and %s", wanted.Selector.Key, key)
		}
		wanted.Selector = config.Selector{Key: key, Value: *value}
	}
	if wanted.Link == "" || wanted.Selector.Key == "" {
		return entry, false, dbusapi.Errorf(dbusapi.InvalidArgs, "a binding needs the key \"link\" and a selector: one of %s", strings.Join(orders.SelectorKeys(), ", "))
	}
	entry, err = wanted.Entry(b.cfg, b.ConfigPath)
	return entry, wanted.Runtime, err
}

// bind binds something to a link.
func (b *onBus) bind(ctx context.Context, given map[string]dbus.Variant) (string, error) {
	leave, err := b.turn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	entry, runtime, err := b.wanted(given)
	if err != nil {
		return "", err
	}
	if err := orders.Bind(b.works, entry, runtime); err != nil {
		return "", err
	}
	rows, err := b.rebound(ctx)
	if err != nil {
		return "", err
	}
	return orders.SentenceBound(entry, orders.RowOf(rows, entry.Selector())), nil
}

// bound finds what a selector binds.
func (b *onBus) bound(word string) (binding.Entry, error) {
	selector, err := orders.ParseSelector(word)
	if err != nil {
		return binding.Entry{}, err
	}
	return orders.FindBound(b.cfg, selector, b.ConfigPath)
}

// unbind undoes bind.
func (b *onBus) unbind(ctx context.Context, word string) (string, error) {
	leave, err := b.turn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	found, err := b.bound(word)
	if err != nil {
		return "", err
	}
	if err := orders.Unbind(b.works, found); err != nil {
		return "", err
	}
	if _, err := b.rebound(ctx); err != nil {
		return "", err
	}
	return orders.SentenceUnbound(found), nil
}

// rebound takes up what is bound, and returns it when it is in force.
func (b *onBus) rebound(ctx context.Context) ([]status.Binding, error) {
	b.parts.bindings.Reload(ctx)
	if _, err := b.parts.loop.Settled(ctx, ""); err != nil {
		return nil, halfDonef("this is kept, and not in force yet: %w", err)
	}
	b.parts.followed(ctx)
	s, _, err := b.teller.status(ctx)
	if err != nil {
		return nil, halfDonef("this is in force, and the status could not be read: %w", err)
	}
	return s.Bindings, nil
}

const (
	// seenTime bounds the wait for what an order about an uplink does, seenAgain is how often to look.
	seenTime  = 2 * time.Second
	seenAgain = 50 * time.Millisecond
)

// uplink finds the uplink that a word names, in a status.
func (b *onBus) uplink(ctx context.Context, word string) (string, *status.Status, error) {
	b.parts.settleUplinks(ctx)
	s, _, err := b.teller.status(ctx)
	if err != nil {
		return "", nil, err
	}
	name, err := orders.Uplink(*s, word)
	return name, s, err
}

// failover carries out an order about an uplink, and returns when its traffic has moved.
func (b *onBus) failover(ctx context.Context, order handoff.Order, word string) (string, error) {
	name, before, err := b.uplink(ctx, word)
	if err != nil {
		return "", err
	}
	switch err := b.parts.obey(order, escape.Original(name)); {
	case errors.Is(err, failover.ErrNoLink):
		return "", dbusapi.Errorf(dbusapi.NoSuchLink, "%s is no uplink any more", name)
	case err != nil:
		return "", orders.Refused(*before, order, name, &handoff.RefusedError{Why: err.Error()})
	}
	waiting, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	ticker := time.NewTicker(seenAgain)
	defer ticker.Stop()
	for {
		now, _, err := b.teller.status(ctx)
		if err != nil {
			return "", halfDonef("the order was carried out, and the status could not be read: %w", err)
		}
		if orders.IsSeen(*now, order, name) || waiting.Err() != nil {
			return orders.SentenceOfOrder(*now, order, name), nil
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
		}
	}
}

// reconcile reads the kernel again, and returns after the passes that this causes.
func (b *onBus) reconcile(ctx context.Context) error {
	if err := b.parts.mirror.Resync(ctx); err != nil {
		return fmt.Errorf("reading the kernel again: %w", err)
	}
	if _, err := b.parts.loop.Settled(ctx, ""); err != nil {
		return fmt.Errorf("waiting for a pass: %w", err)
	}
	b.parts.followed(ctx)
	return nil
}

// setLogLevel changes what is logged, until the configuration is read again.
func (b *onBus) setLogLevel(ctx context.Context, word, by string) error {
	level, err := orders.Level(word)
	if err != nil {
		return err
	}
	b.Level.Set(level)
	b.Logger.LogAttrs(ctx, event.LevelNotice, "log level changed", slog.String("level", word), slog.String("by", by))
	b.stale.Give()
	return nil
}

// A reload is a request to read the configuration again.
type reload struct {
	// done takes what came of it, and has room for that.
	done chan error
}

// reload has the configuration read again, and returns when the new one is active.
func (s *service) reload(ctx context.Context) error {
	r := reload{done: make(chan error, 1)}
	select {
	case s.reloads <- r:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// selectors adds keys with values that are text.
func (o options) selectors(keys []string) map[string]*string {
	out := make(map[string]*string, len(keys))
	for _, key := range keys {
		out[key] = new(string)
		o[key] = out[key]
	}
	return out
}
