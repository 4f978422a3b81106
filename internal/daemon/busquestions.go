package daemon

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/doctor"
	"multihomed/internal/doctor/gather"
	"multihomed/internal/explain"
	"multihomed/internal/explain/reading"
	"multihomed/internal/graph"
	"multihomed/internal/graph/host"
	"multihomed/internal/preview"
	"multihomed/internal/status/offline"
	"multihomed/routing/lookup"
)

// options reads a dictionary: each key that the caller may give, with where its value goes.
type options map[string]any

// take stores what was given. A key that is not known, or of another type, is an error.
func (o options) take(given map[string]dbus.Variant) error {
	for name, value := range given {
		to, known := o[name]
		if !known {
			return dbusapi.Errorf(dbusapi.InvalidArgs, "the key %q is not known; there are %s", name, o.names())
		}
		// Store alone would make text of a number.
		is := reflect.TypeOf(value.Value()) == reflect.TypeOf(to).Elem()
		if !is || value.Store(to) != nil {
			return dbusapi.Errorf(dbusapi.InvalidArgs, "the value of %q has the type %q; see org.multihomed1(5)", name, value.Signature())
		}
	}
	return nil
}

func (o options) names() string {
	if len(o) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(o)), ", ")
}

// packet is a packet of a dictionary.
type packet struct {
	explain.Packet
	changes []string
}

func (p *packet) options() options {
	return options{
		"destination": &p.To, "source": &p.From, "oif": &p.OIF, "iif": &p.IIF, "uid": &p.UID, "mark": &p.Mark,
		"protocol": &p.Protocol, "sport": &p.SourcePort, "dport": &p.DestinationPort, "tos": &p.TOS, "what_if": &p.changes,
	}
}

// flow checks a packet.
func (p *packet) flow() (lookup.Flow, error) {
	if p.To == "" {
		return lookup.Flow{}, dbusapi.Errorf(dbusapi.InvalidArgs, "the key \"destination\" is needed: the address that the packet is for")
	}
	f, err := p.Flow(func(field string) string { return field })
	if err == nil {
		err = reading.Check(f)
	}
	if err != nil {
		return f, dbusapi.Errorf(dbusapi.InvalidArgs, "%v", err)
	}
	return f, nil
}

// explain says how a packet is routed. Without a user it is one of who asks.
func (b *onBus) explain(ctx context.Context, given map[string]dbus.Variant, uid uint32) (string, error) {
	p := packet{Packet: explain.Packet{UID: uid}}
	if err := p.options().take(given); err != nil {
		return "", err
	}
	flow, err := p.flow()
	if err != nil {
		return "", err
	}
	changes := make([]explain.Change, 0, len(p.changes))
	for _, text := range p.changes {
		c, err := explain.ParseChange(text)
		if err != nil {
			return "", dbusapi.Errorf(dbusapi.InvalidArgs, "what_if: %v", err)
		}
		changes = append(changes, c)
	}
	// After a change the socket may get another address, and then needs other routes.
	s, err := reading.Host(ctx, flow, len(changes) > 0)
	if err != nil {
		return "", err
	}
	told, _, err := b.teller.status(ctx)
	if err != nil {
		return "", err
	}
	reading.Annotate(&s.Facts, told, b.cfg)
	facts := &s.Facts
	if len(changes) > 0 {
		if facts, err = facts.WhatIf(changes); err != nil {
			return "", dbusapi.Errorf(dbusapi.InvalidArgs, "%v", err)
		}
	}
	var out bytes.Buffer
	err = facts.Explain(flow).WriteJSON(&out)
	return out.String(), err
}

// plan says what a pass would change now.
func (b *onBus) plan(ctx context.Context, given map[string]dbus.Variant) (string, error) {
	if err := (options{}).take(given); err != nil {
		return "", err
	}
	facts, err := offline.Preview(ctx, b.cfg)
	if err != nil {
		return "", fmt.Errorf("planning: %w", err)
	}
	var out bytes.Buffer
	err = preview.Of(facts).WriteJSON(&out)
	return out.String(), err
}

// graph draws rules, tables and devices.
func (b *onBus) graph(ctx context.Context, given map[string]dbus.Variant, uid uint32) (string, error) {
	p := packet{Packet: explain.Packet{UID: uid}}
	format := "svg"
	if err := (options{"flow": &p.To, "format": &format}).take(given); err != nil {
		return "", err
	}
	draw := graph.SVG
	switch format {
	case "svg":
	case "dot":
		draw = graph.Dot
	default:
		return "", dbusapi.Errorf(dbusapi.InvalidArgs, "the format is %q; it may be svg or dot", format)
	}
	var o graph.Options
	if p.To != "" {
		flow, err := p.flow()
		if err != nil {
			return "", err
		}
		if o.Flow, err = host.Follow(ctx, flow); err != nil {
			return "", err
		}
	}
	facts, err := host.Read(ctx, b.cfg.Tables)
	if err != nil {
		return "", fmt.Errorf("reading rules and routes: %w", err)
	}
	told, _, err := b.teller.status(ctx)
	if err != nil {
		return "", err
	}
	facts.Annotate(told)
	return string(draw(facts, o)), nil
}

// diagnose finds what disturbs links. It sends no packets.
func (b *onBus) diagnose(ctx context.Context, given map[string]dbus.Variant) (string, error) {
	if err := (options{}).take(given); err != nil {
		return "", err
	}
	told, _, err := b.teller.status(ctx)
	if err != nil {
		return "", err
	}
	v, err := offline.Look(ctx, b.cfg)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = doctor.Diagnose(*told, gather.Read(ctx, gather.Of(v), os.DirFS("/"))).WriteJSON(&out)
	return out.String(), err
}
