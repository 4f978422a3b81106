package config

import (
	"fmt"

	"multihomed/routing"
)

// Answers configures on which link this host answers for others: published ports of containers,
// port forwards, and hosts of a LAN whose addresses it translates.
type Answers struct {
	// Forwarded says whether such packets are answered on the link on which they were asked. Auto:
	// where the host forwards, translates addresses and has two uplinks, and is no node of
	// Kubernetes.
	Forwarded Presence
	// Fence says whether packets with an address of one uplink that would leave by another one are
	// dropped. Auto: as Forwarded.
	Fence Presence
	// MarkMask are the bits of the packet mark that are ours.
	MarkMask routing.MarkMask
	// OnDead is what becomes of tracked connections that are translated to the address of a link
	// that has gone.
	OnDead OnDead
}

// OnDead is what becomes of translated connections of a link that has gone.
type OnDead string

// Reset forgets them, so that the next packet begins anew by another link; Keep keeps them, and
// they are refused.
const (
	Reset OnDead = "reset"
	Keep  OnDead = "keep"
)

func defaultAnswers() Answers {
	return Answers{Forwarded: Auto, Fence: Auto, MarkMask: routing.DefaultMarkMask, OnDead: Reset}
}

func (v *validator) answers(file rawAnswers, preset Answers) Answers {
	a := preset
	a.Forwarded = v.presence("answers.forwarded", file.Forwarded, a.Forwarded)
	a.Fence = v.presence("answers.fence", file.Fence, a.Fence)
	a.OnDead = word(v, "answers.on_dead", file.OnDead, a.OnDead, Reset, Keep)
	if file.MarkMask == nil {
		return a
	}
	const key = "answers.mark_mask"
	if *file.MarkMask < 1 || *file.MarkMask > 1<<32-1 {
		v.refuse(key, *file.MarkMask)
		return a
	}
	mask := routing.MarkMask(*file.MarkMask)
	if err := mask.Check(); err != nil {
		v.refuseWith(key, fmt.Sprintf("%#x", uint32(mask)), err.Error())
		return a
	}
	a.MarkMask = mask
	return a
}
