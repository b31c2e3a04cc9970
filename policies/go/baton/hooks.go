package baton

import "time"

// Requirements are what a policy needs of the gateway. The zero value asks for nothing.
type Requirements struct {
	// MaxReuse bounds the requests that one instance serves; 0 leaves it to the gateway's configuration.
	MaxReuse uint32
	// Fresh asks for a new instance for every request.
	Fresh bool
	// Targets are the targets and upstreams that this policy wants to name. They can only narrow what the gateway's
	// configuration allows, and an unknown name refuses the module. None is no narrowing.
	Targets []string
}

// What is registered. A nil function is a hook that the policy does not have.
var hooks struct {
	onRequest    func(*Request) Decision
	configure    func(config string) (Requirements, error)
	selfTest     func() error
	onTick       func()
	tickInterval time.Duration
}

// OnRequest registers what decides on a request, once its head has been read. No decision (nil) is [Pass].
func OnRequest(decide func(*Request) Decision) { hooks.onRequest = decide }

// Configure registers what is called once, before any request, with the policy's configuration as JSON. An error refuses
// the module, and the one that runs goes on; make it with errors.Join to name every fault.
func Configure(configure func(config string) (Requirements, error)) { hooks.configure = configure }

// OnTick registers what is called every so often, in an instance of its own.
func OnTick(interval time.Duration, tick func()) {
	if interval < time.Millisecond {
		panic("baton.OnTick: the shortest interval is a millisecond")
	}
	hooks.tickInterval, hooks.onTick = interval, tick
}

// SelfTest registers the policy's own test. It runs after Configure in an instance that is thrown away, with an empty
// GET / as the request; an error refuses the module.
func SelfTest(test func() error) { hooks.selfTest = test }

// decide asks what is registered.
func decide() Decision {
	if hooks.onRequest == nil {
		return Pass{}
	}
	return hooks.onRequest(new(Request))
}

// configure configures what is registered, and returns every fault.
func configure(config string) (Requirements, []string) {
	if hooks.configure == nil {
		return Requirements{}, nil
	}
	requirements, err := hooks.configure(config)
	if err != nil {
		return Requirements{}, faults(err)
	}
	return requirements, nil
}

func selfTest() error {
	if hooks.selfTest == nil {
		return nil
	}
	return hooks.selfTest()
}

// faults takes what errors.Join made apart again.
func faults(err error) []string {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []string{err.Error()}
	}
	var all []string
	for _, err := range joined.Unwrap() {
		all = append(all, faults(err)...)
	}
	return all
}

// Reserve says how many bytes one answer of the gateway may hold: what Fetch and Config give, and lists. Call it in an
// init function or in Configure; without it, it is 1 MiB, which is what the gateway allows by default.
func Reserve(bytes int) { answerBytes = bytes }

var answerBytes = 1 << 20
