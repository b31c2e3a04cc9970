package main

import (
	"cmp"
	"slices"

	"baton"
)

// ranked are the names of the daemons that take clients, the session's own first (rendezvous hashing, Thaler and
// Ravishankar 1996). When one goes away, the order of the others is what it was: only its own sessions move, and they
// spread over all that are left. A daemon that drains takes nobody new, so its sessions move too.
func ranked(session string, members []baton.TargetStatus) []string {
	type candidate struct {
		name   string
		weight uint64
	}
	candidates := make([]candidate, 0, len(members))
	for i := range members {
		if health := members[i].Health; health == baton.HealthUp || health == baton.HealthUnknown {
			candidates = append(candidates, candidate{members[i].Name, weight(session, members[i].Name)})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		// Names differ, and decide where weights do not.
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
	names := make([]string, len(candidates))
	for i, candidate := range candidates {
		names[i] = candidate.name
	}
	return names
}

// weight is FNV-1a over both names, and the finalizer of MurmurHash3 behind it: FNV alone hardly changes its upper bits
// with the last bytes, which is where names of daemons differ. Not hash/maphash, whose seed is another in every process.
func weight(session, daemon string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	hash := uint64(offset)
	for _, text := range [...]string{session, daemon} {
		for i := range len(text) {
			hash = (hash ^ uint64(text[i])) * prime
		}
	}
	hash = (hash ^ hash>>33) * 0xff51afd7ed558ccd
	hash = (hash ^ hash>>33) * 0xc4ceb9fe1a85ec53
	return hash ^ hash>>33
}
