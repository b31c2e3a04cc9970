<?php

/** A daemon that takes handed-over clients, and answers by the request's path. */

declare(strict_types=1);

require __DIR__ . '/handoff.php';

use Baton\Acceptor;
use Baton\ClientGone;
use Baton\Handoff;
use Baton\Revoked;

const TEXT = ['Content-Type' => 'text/plain'];
const OCTETS = ['Content-Type' => 'application/octet-stream'];
const JSON = ['Content-Type' => 'application/json'];
const USAGE = "usage: php daemon.php SOCKET [DIALECT] [--interval MS] [--in-flight-max N]\n";

/** Ten events, one after the other. */
function stream(Handoff $handoff, float $interval): void
{
    $handoff->start(200, ['Content-Type' => 'text/event-stream', 'Cache-Control' => 'no-store']);
    for ($n = 1; $n <= 10; $n++) {
        $event = ['n' => $n, 'text' => $n === 1 ? $handoff->data : 'hello'];
        $handoff->write('data: ' . json_encode($event, JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES) . "\n\n");
        if ($handoff->gone($interval)) {
            // The next write would say the same; nobody needs to be waited for until then.
            throw $handoff->revoked() ? new Revoked('revoked') : new ClientGone('the client has left');
        }
    }
    $handoff->write("event: done\ndata: {}\n\n");
    $handoff->finish(200);
}

function answer(Handoff $handoff, float $interval): void
{
    [$path, $query] = explode('?', $handoff->target, 2) + ['', ''];
    parse_str($query, $asked);
    $giveBack = function (array $headers, string $body) use ($handoff): void {
        $handoff->respond(200, $headers, $body, keepAlive: true);
        $handoff->giveBack(200);
    };
    switch ($path) {
        case '/late':
            sleep(3);
            // and as the next
        case '/hello':
            $handoff->respond(200, TEXT, "hello\n");
            $handoff->finish(200);
            break;
        case '/return':
            $giveBack(TEXT, "returned\n");
            break;
        case '/echo':
            $giveBack(OCTETS, $handoff->body());
            break;
        case '/unread':
            $giveBack(TEXT, "unread\n");
            break;
        case '/refuse':
            $after = $asked['retry_after'] ?? null;
            $handoff->refuse($asked['reason'] ?? 'overloaded', $after === null ? null : (int) $after, 'as asked');
            break;
        case '/env':
            $giveBack(JSON, json_encode((object) $handoff->env(), JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES));
            break;
        case '/meta':
            $giveBack(JSON, $handoff->metadataJson);
            break;
        case '/data':
            $giveBack(OCTETS, $handoff->data);
            break;
        case '/hold':
            $handoff->start(200, TEXT);
            $handoff->write("held\n");
            $handoff->gone();
            $handoff->finish(200, $handoff->revoked() ? 'revoked' : 'client-gone');
            break;
        case '/fail':
            $handoff->respond(500, TEXT, "failed\n");
            $handoff->finish(500, 'error', 'as asked');
            break;
        case '/large':
            $handoff->start(200, OCTETS);
            for ($left = (int) ($asked['bytes'] ?? 0); $left > 0;) {
                $left -= $handoff->write(str_repeat('a', min($left, 1 << 16)));
            }
            $handoff->finish(200);
            break;
        case '/drop':
            $handoff->take();
            break;
        default:
            stream($handoff, $interval);
    }
}

/** @return array{string, string, float, int} */
function options(array $arguments): array
{
    $options = ['--interval' => '100', '--in-flight-max' => '100'];
    $places = [];
    while (($argument = array_shift($arguments)) !== null) {
        if (!str_starts_with($argument, '--')) {
            $places[] = $argument;
        } elseif (isset($options[$argument]) && ctype_digit($arguments[0] ?? '')) {
            $options[$argument] = array_shift($arguments);
        } else {
            throw new InvalidArgumentException("$argument is not understood");
        }
    }
    if (count($places) < 1 || count($places) > 2) {
        throw new InvalidArgumentException('where to listen, and at most a dialect');
    }
    return [$places[0], $places[1] ?? 'baton', (int) $options['--interval'] / 1000, (int) $options['--in-flight-max']];
}

try {
    [$path, $dialect, $interval, $inFlightMax] = options(array_slice($argv, 1));
    // One after the other, there is only one at a time.
    $acceptor = new Acceptor($path, $dialect, name: 'daemon-php', inFlightMax: function_exists('pcntl_fork') ? $inFlightMax : 1);
} catch (InvalidArgumentException | Baton\HandoffException $error) {
    fwrite(STDERR, USAGE . 'daemon: ' . $error->getMessage() . "\n");
    exit(2);
}
if (function_exists('pcntl_async_signals')) {
    pcntl_async_signals(true);
    foreach ([SIGTERM, SIGINT] as $signal) {
        pcntl_signal($signal, fn () => $acceptor->stop());
    }
}
echo "ready $path\n";
$acceptor->serve(fn (Handoff $handoff) => answer($handoff, $interval));
$acceptor->drain(30.0);
