package server

import (
	"context"
	"sync"
	"time"

	"multihomed/internal/news"
)

// A budget bounds what costly calls take of a processor, to a tenth. Calls that wait for the same
// thing share one answer, whose making begins after each of them came. A host that is asked now and
// then answers at once: the part of a processor that nobody used is kept for a second of work. Users take
// turns, so that who asks much delays another one by one answer.
type budget struct {
	wake news.Signal

	mu      sync.Mutex
	waiting map[key]*job
	// order are the users with jobs, as their turn comes, jobs those of each.
	order []uint32
	jobs  map[uint32][]*job
}

// key says which calls get the same answer.
type key struct {
	method string
	// uid is there because an answer may depend on who asks.
	uid  uint32
	body string
}

// job is one answer in the making.
type job struct {
	key     key
	do      func(context.Context) (string, error)
	answers []chan product
}

type product struct {
	text string
	err  error
}

const (
	// costFactor makes a tenth of a processor, kept is the work that may be done at once.
	costFactor = 10
	kept       = time.Second
	// makeTime bounds one answer.
	makeTime = 30 * time.Second
)

// A toll has work paid for by time: factor times as much as it cost. Up to credit of the time in which
// nothing was done is kept for work to come.
type toll struct {
	factor int
	credit time.Duration
	until  time.Time
}

// pay returns how long to pause, from now on, for work that cost so much. Time is kept up to the moment.
func (t *toll) pay(moment time.Time, cost time.Duration) time.Duration {
	if oldest := moment.Add(-t.credit); t.until.Before(oldest) {
		t.until = oldest
	}
	t.until = t.until.Add(time.Duration(t.factor) * cost)
	return time.Until(t.until)
}

func newBudget() *budget {
	return &budget{wake: news.NewSignal(), waiting: map[key]*job{}, jobs: map[uint32][]*job{}}
}

// share waits for an answer.
func (b *budget) share(ctx context.Context, k key, do func(context.Context) (string, error)) (string, error) {
	answer := make(chan product, 1)
	b.mu.Lock()
	j := b.waiting[k]
	if j == nil {
		j = &job{key: k, do: do}
		b.waiting[k] = j
		if len(b.jobs[k.uid]) == 0 {
			b.order = append(b.order, k.uid)
		}
		b.jobs[k.uid] = append(b.jobs[k.uid], j)
	}
	j.answers = append(j.answers, answer)
	b.mu.Unlock()
	b.wake.Give()
	select {
	case p := <-answer:
		return p.text, p.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// take returns the next job. Who comes from now on waits for another one.
func (b *budget) take() (*job, []chan product) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.order) == 0 {
		return nil, nil
	}
	uid := b.order[0]
	j := b.jobs[uid][0]
	b.order, b.jobs[uid] = b.order[1:], b.jobs[uid][1:]
	if len(b.jobs[uid]) > 0 {
		b.order = append(b.order, uid)
	} else {
		delete(b.jobs, uid)
	}
	delete(b.waiting, j.key)
	return j, j.answers
}

// run makes answers until ctx is done.
func (b *budget) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	paid := toll{factor: costFactor, credit: costFactor * kept}
	for {
		j, answers := b.take()
		if j == nil {
			select {
			case <-b.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		began := time.Now()
		making, cancel := context.WithTimeout(ctx, makeTime)
		text, err := j.do(making)
		cancel()
		for _, a := range answers {
			a <- product{text, err}
		}
		if wait := paid.pay(began, time.Since(began)); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
	}
}
