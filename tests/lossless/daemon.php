<?php

/** As daemon.rs, with the library in PHP: daemon.php SOCKET NAME REFUSED_PERCENT. */

declare(strict_types=1);

require __DIR__ . '/../../examples/daemon-php/handoff.php';

use Baton\Acceptor;
use Baton\Handoff;

const TEXT = ['Content-Type' => 'text/plain'];

function answer(Handoff $handoff, string $name, int $refusedPercent): void
{
    if (random_int(0, 99) < $refusedPercent) {
        $handoff->refuse('overloaded', null, 'by chance');
        return;
    }
    [$path, $pauseMs] = explode('?', $handoff->target, 2) + ['', '0'];
    [, $kind, $mark] = explode('/', $path);
    $line = "$name $mark";
    if ($kind === 'stream') {
        $handoff->start(200, TEXT);
        for ($n = 0; $n < 5; $n++) {
            $handoff->write("$line $n\n");
            usleep(3000);
        }
        $handoff->write("$line end\n");
        $handoff->finish(200);
        return;
    }
    if ($kind === 'late') {
        usleep(1000 * (int) $pauseMs);
    }
    $body = "$line\n" . ($kind === 'echo' ? $handoff->body() : '');
    $handoff->respond(200, TEXT, $body, keepAlive: $kind !== 'last');
    if ($kind === 'last') {
        $handoff->finish(200);
    } else {
        $handoff->giveBack(200);
    }
}

[, $socket, $name, $refusedPercent] = $argv;
$acceptor = new Acceptor($socket, 'baton', name: $name, inFlightMax: 8);
pcntl_async_signals(true);
pcntl_signal(SIGTERM, fn () => $acceptor->stop());
echo "ready $socket\n";
$acceptor->serve(fn (Handoff $handoff) => answer($handoff, $name, (int) $refusedPercent));
$acceptor->drain(30.0);
