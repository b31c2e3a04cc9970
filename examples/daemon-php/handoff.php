<?php

/**
 * Receives HTTP clients that a gateway hands over: the client's own socket, with what is known of its request.
 *
 *     require 'handoff.php';
 *
 *     $acceptor = new Baton\Acceptor('/run/hello.sock');
 *     $acceptor->serve(function (Baton\Handoff $handoff): void {
 *         $handoff->respond(200, ['Content-Type' => 'text/plain'], "hello\n");
 *         $handoff->finish();
 *     });
 *
 * PHP 8.2 with the sockets extension is enough, and Linux is needed. With pcntl, `serve` gives each client a process of
 * its own, and the first process answers the gateways meanwhile; without it, or with `accept`, clients come one after the
 * other, and the gateways are answered whenever a method here waits or writes.
 *
 * Until a handoff is *taken*, which the first read or write does, it is lent, and `refuse` gives it back untouched. From
 * then on the client is this process's: `finish` ends it, `giveBack` returns it to the gateway for its next request.
 * Dropping it otherwise ends it too, and reports that nobody finished it.
 */

declare(strict_types=1);

namespace Baton;

use Closure;
use InvalidArgumentException;
use Iterator;
use IteratorAggregate;
use LogicException;
use RuntimeException;
use Socket;
use Throwable;

/** Dialects, and the type of their sockets. */
const DIALECTS = ['baton' => SOCK_SEQPACKET, 'seqpacket' => SOCK_SEQPACKET, 'stream' => SOCK_STREAM,
    'fdpass' => SOCK_STREAM, 'datagram' => SOCK_DGRAM];
/** Why a client can be refused, and the status where the dialect has no word for it. */
const REASONS = ['denied' => 403, 'draining' => 503, 'overloaded' => 503, 'unsupported' => 501];
const RESULTS = ['ok', 'client-gone', 'error', 'timeout', 'revoked'];

const HELLO = 1;
const HANDOFF = 2;
const TAKEN = 3;
const REFUSED = 4;
const DONE = 5;
const RETURN_ = 6;
const LOAD = 7;
const DRAINING = 8;
const REVOKE = 9;
const PING = 10;
const PONG = 11;

const FLAG_BODY = 0x01;
const FLAG_DATA = 0x02;
const FLAG_PREREAD = 0x04;
const FLAG_OPTIONAL = 0x80;

const PACKET_BYTES_MAX = 128 << 10;
/** As many as can come in one message: in a smaller buffer, strays would leak. */
const DESCRIPTORS_MAX = 253;
/** Frames that a gateway has not read, at most: one that asks and never reads is dropped. */
const UNSENT_FRAMES_MAX = 4096;
/** Connections whose message has not arrived yet, at most; more wait in the backlog. */
const INCOMING_MAX = 64;
/** From the connection to a message that is whole, or a channel's HELLO. */
const RECEIVE_TIMEOUT_S = 5.0;
/** How long a finished client may take to read the rest and to close. */
const CLOSE_PATIENCE_S = 2.0;
/** A signal that comes just before a wait is noticed after so long: PHP runs its handler only between two statements. */
const SIGNAL_LOOK_S = 0.25;
/** After descriptors have run out, nothing is received for so long. */
const EXHAUSTED_PAUSE_S = 0.05;
/** What is read of a body to give a client back; a longer rest ends the connection instead. */
const DISCARDED_BYTES_MAX = 64 << 10;
const PREREAD_BYTES_MAX = 16 << 20;
const CHUNK_LINE_BYTES_MAX = 16 << 10;
const TRAILER_BYTES_MAX = 16 << 10;
const READ_BYTES = 64 << 10;
/** execve(2) takes strings of 128 KiB, the name, `=` and the final NUL included. */
const VARIABLE_BYTES_MAX = (128 << 10) - 14;

// Linux has these, PHP's sockets extension no names for them.
const SO_PEERCRED = 17;
const SO_ACCEPTCONN = 30;
const SO_DOMAIN = 39;

const CGI_NAMES = ['AUTH_TYPE', 'CONTENT_LENGTH', 'CONTENT_TYPE', 'GATEWAY_INTERFACE', 'HTTPS', 'PATH_INFO',
    'PATH_TRANSLATED', 'QUERY_STRING', 'REMOTE_ADDR', 'REMOTE_HOST', 'REMOTE_PORT', 'REMOTE_USER', 'REQUEST_METHOD', 'REQUEST_URI',
    'SCRIPT_NAME', 'SERVER_NAME', 'SERVER_PORT', 'SERVER_PROTOCOL', 'SERVER_SOFTWARE'];

const PHRASES = [200 => 'OK', 201 => 'Created', 202 => 'Accepted', 204 => 'No Content', 206 => 'Partial Content',
    301 => 'Moved Permanently', 302 => 'Found', 303 => 'See Other', 304 => 'Not Modified', 307 => 'Temporary Redirect',
    308 => 'Permanent Redirect', 400 => 'Bad Request', 401 => 'Unauthorized', 403 => 'Forbidden', 404 => 'Not Found',
    405 => 'Method Not Allowed', 406 => 'Not Acceptable', 408 => 'Request Timeout', 409 => 'Conflict', 410 => 'Gone',
    411 => 'Length Required', 412 => 'Precondition Failed', 413 => 'Content Too Large', 415 => 'Unsupported Media Type',
    416 => 'Range Not Satisfiable', 422 => 'Unprocessable Content', 429 => 'Too Many Requests',
    500 => 'Internal Server Error', 501 => 'Not Implemented', 502 => 'Bad Gateway', 503 => 'Service Unavailable',
    504 => 'Gateway Timeout'];

/** Something about a handoff failed. */
class HandoffException extends RuntimeException
{
}

/** The request's body is not framed as announced. */
final class BodyException extends HandoffException
{
}

/** The handoff is over, and there is nothing left to do. `serve` reports it and goes on. */
abstract class Ended extends HandoffException
{
    public const RESULT = 'error';
}

/** The client has left. */
final class ClientGone extends Ended
{
    public const RESULT = 'client-gone';
}

/** The client neither read nor wrote for too long. */
final class Timeout extends Ended
{
    public const RESULT = 'timeout';
}

/** The gateway asked to end it. */
final class Revoked extends Ended
{
    public const RESULT = 'revoked';
}

/** The gateway left before the handoff was taken: the client is not ours and was not touched. */
final class ChannelGone extends Ended
{
}

/** Nothing behind it on this channel can be trusted. */
final class ProtocolException extends RuntimeException
{
}

/** A frame of the native protocol: bytes to values and back. */
final class Frame
{
    public function __construct(
        public readonly int $kind,
        public readonly int $flags,
        public readonly int $id,
        public readonly string $payload,
    ) {
    }

    public static function encode(int $kind, int $id = 0, string $payload = ''): string
    {
        return pack('CCCCVP', 0xB7, 1, $kind, 0, strlen($payload), $id) . $payload;
    }

    /** @param array<string, mixed> $members those that are null are left out */
    public static function json(int $kind, int $id, array $members): string
    {
        return self::encode($kind, $id, self::object($members));
    }

    /** @param array<string, mixed> $members */
    public static function object(array $members): string
    {
        $present = array_filter($members, fn (mixed $value): bool => $value !== null);
        return json_encode($present, JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES);
    }

    public static function sections(string ...$sections): string
    {
        return implode('', array_map(fn (string $section): string => pack('V', strlen($section)) . $section, $sections));
    }

    /**
     * All frames of a packet, one or more; their lengths add up to it.
     *
     * @return list<self>
     */
    public static function decode(string $packet): array
    {
        $frames = [];
        $start = 0;
        do {
            $left = strlen($packet) - $start;
            if ($left < 16) {
                throw new ProtocolException("$left bytes, which are no header");
            }
            $header = unpack('Cmagic/Cversion/Ckind/Cflags/Vlength/Pid', $packet, $start);
            if ($header['magic'] !== 0xB7 || $header['version'] !== 1) {
                throw new ProtocolException(sprintf('a frame that begins with 0x%02x, version %d', $header['magic'],
                    $header['version']));
            }
            if ($header['length'] > $left - 16) {
                throw new ProtocolException(($left - 16) . " bytes behind a header that says {$header['length']}");
            }
            $payload = substr($packet, $start + 16, $header['length']);
            $frames[] = new self($header['kind'], $header['flags'], $header['id'], $payload);
            $start += 16 + $header['length'];
        } while ($start < strlen($packet));
        return $frames;
    }

    /** How many descriptors belong to it. */
    public function descriptors(): int
    {
        return match ($this->kind) {
            HANDOFF => 1 + count($this->memfds()),
            // Only a process of ours sends one here, on its way to the gateway.
            RETURN_ => 1,
            default => 0,
        };
    }

    /** @return list<int> the flags of those that come behind the client, in order */
    public function memfds(): array
    {
        $flags = [FLAG_BODY, FLAG_DATA, FLAG_PREREAD];
        return array_values(array_filter($flags, fn (int $flag): bool => ($this->flags & $flag) !== 0));
    }

    /** @return list<string> exactly so many */
    public function readSections(int $count): array
    {
        $sections = [];
        $start = 0;
        for ($n = 0; $n < $count; $n++) {
            $length = strlen($this->payload) - $start < 4 ? PHP_INT_MAX : unpack('V', $this->payload, $start)[1];
            if ($length > strlen($this->payload) - $start - 4) {
                throw new ProtocolException(strlen($this->payload) . " bytes that are not $count sections");
            }
            $sections[] = substr($this->payload, $start + 4, $length);
            $start += 4 + $length;
        }
        if ($start !== strlen($this->payload)) {
            throw new ProtocolException('bytes behind the last section');
        }
        return $sections;
    }

    /** @return array<string, mixed> */
    public static function readObject(string $json): array
    {
        // Once as PHP has it: without objects, one cannot be told from a list.
        $value = json_decode($json);
        if (!$value instanceof \stdClass) {
            throw new ProtocolException('no JSON object');
        }
        return json_decode($json, true);
    }
}

/** What one receive brought; every descriptor that came is in it, or closed. */
final class Received
{
    /** @param list<Socket|resource> $descriptors */
    private function __construct(
        public readonly string $bytes,
        public array $descriptors,
        public readonly bool $isTruncated,
        public readonly ?int $uid,
        public readonly ?int $gid,
    ) {
    }

    /** Receives without waiting; null when there is nothing. */
    public static function from(Socket $connection, int $bytesMax): ?self
    {
        $message = ['name' => [], 'buffer_size' => $bytesMax, 'controllen' =>
            socket_cmsg_space(SOL_SOCKET, SCM_RIGHTS, DESCRIPTORS_MAX) + socket_cmsg_space(SOL_SOCKET, SCM_CREDENTIALS)];
        // Descriptors come as Socket objects or, what is something else, as streams.
        $count = @socket_recvmsg($connection, $message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if ($count === false) {
            // Of this function and of socket_sendmsg, PHP keeps the error only as the last one of any socket.
            $error = socket_last_error();
            if (in_array($error, [SOCKET_EAGAIN, SOCKET_EINTR], true)) {
                return null;
            }
            throw new HandoffException(socket_strerror($error), $error);
        }
        $descriptors = [];
        [$uid, $gid] = [null, null];
        foreach ($message['control'] ?? [] as $control) {
            if ($control['level'] === SOL_SOCKET && $control['type'] === SCM_RIGHTS) {
                array_push($descriptors, ...$control['data']);
            } elseif ($control['level'] === SOL_SOCKET && $control['type'] === SCM_CREDENTIALS) {
                // Nobody's process and nobody's user: sent before the kernel was asked to say whose.
                if ($control['data']['pid'] !== 0 || $control['data']['uid'] !== 65534) {
                    [$uid, $gid] = [$control['data']['uid'], $control['data']['gid']];
                }
            }
        }
        $isTruncated = ($message['flags'] & (MSG_TRUNC | MSG_CTRUNC)) !== 0;
        return new self($message['iov'][0] ?? '', $descriptors, $isTruncated, $uid, $gid);
    }
}

/** @param iterable<Socket|resource|null> $descriptors */
function closeAll(iterable $descriptors): void
{
    foreach ($descriptors as $descriptor) {
        if ($descriptor instanceof Socket) {
            socket_close($descriptor);
        } elseif (is_resource($descriptor)) {
            fclose($descriptor);
        }
    }
}

/** All of a memfd, unless it is longer. Its position, which the gateway may share, is put back. */
function bytesOf(mixed $memfd, int $bytesMax): ?string
{
    if (fstat($memfd)['size'] > $bytesMax) {
        return null;
    }
    $bytes = (string) stream_get_contents($memfd, -1, 0);
    rewind($memfd);
    return $bytes;
}

function isStreamSocket(mixed $descriptor): bool
{
    return $descriptor instanceof Socket && socket_get_option($descriptor, SOL_SOCKET, SO_TYPE) === SOCK_STREAM;
}

function now(): float
{
    return hrtime(true) / 1e9;
}

/** One handoff in the books: what the acceptor keeps of it while the program holds the handoff itself. */
final class Entry
{
    public ?string $revokedFor = null;
    public bool $isTaken = false;
    public bool $isReleased = false;

    public function __construct(public readonly Acceptor $acceptor, public readonly Channel|Upstream|null $channel,
        public readonly int $id)
    {
    }

    /** The client is gone from here; it is said to the gateway next, which may then send another. */
    public function release(): void
    {
        if (!$this->isReleased) {
            $this->isReleased = true;
            $this->acceptor->released($this);
            if ($this->channel instanceof Channel) {
                unset($this->channel->lent[$this->id]);
            }
        }
    }

    public function done(string $result, string $message): string
    {
        return Frame::json(DONE, $this->id,
            ['bytes_out' => 0, 'duration_us' => 0, 'result' => $result, 'message' => $message]);
    }
}

/** A connection in the dialect `baton`: a gateway's, or within a process of `serve` the one to the first process. */
final class Channel
{
    /** @var array<int, Entry> in flight, by id */
    public array $lent = [];
    public bool $isGreeted = false;
    public bool $hasEnded = false;
    public readonly float $deadline;
    /** @var list<array{string, ?Socket, ?Closure}> */
    private array $unsent = [];

    public function __construct(private readonly Acceptor $acceptor, public readonly Socket $connection)
    {
        $this->deadline = now() + RECEIVE_TIMEOUT_S;
    }

    /**
     * Sends now or as soon as the other side reads; `$sent` is told whether it was. Where the channel has ended, the frame
     * is dropped and its client closed.
     */
    public function send(string $frame, ?Socket $client = null, ?Closure $sent = null): void
    {
        $this->unsent[] = [$frame, $client, $sent];
        $this->flush();
        if (count($this->unsent) > UNSENT_FRAMES_MAX) {
            $this->end();
        }
    }

    public function hasUnsent(): bool
    {
        return $this->unsent !== [];
    }

    public function flush(): void
    {
        while ($this->unsent !== [] && !$this->hasEnded) {
            [$frame, $client, $sent] = $this->unsent[0];
            $message = ['iov' => [$frame]];
            $stream = null;
            if ($client !== null) {
                // As a Socket object it would be sent wrong: PHP since 8.0 puts descriptor 0 in its place (php-src #22338).
                $stream = socket_export_stream($client);
                $message['control'] = [['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => [$stream]]];
            }
            if (@socket_sendmsg($this->connection, $message, MSG_DONTWAIT | MSG_NOSIGNAL) === false) {
                if (in_array(socket_last_error(), [SOCKET_EAGAIN, SOCKET_EINTR], true)) {
                    return;
                }
                $this->end();
                return;
            }
            array_shift($this->unsent);
            closeAll([$stream]);
            if ($sent !== null) {
                $sent(true);
            }
        }
        if ($this->hasEnded) {
            $this->end();
        }
    }

    /** Nothing is sent any more; the acceptor clears up. */
    public function end(): void
    {
        $this->hasEnded = true;
        $unsent = $this->unsent;
        $this->unsent = [];
        foreach ($unsent as [, $client, $sent]) {
            closeAll([$client]);
            if ($sent !== null) {
                $sent(false);
            }
        }
    }

    /** Reads what is there. Whatever breaks the protocol ends the channel, and nobody else notices. */
    public function read(): void
    {
        try {
            for ($n = 0; $n < 64 && !$this->hasEnded && $this->acceptor->hasRoom() && $this->readPacket(); $n++);
        } catch (ProtocolException $error) {
            $this->acceptor->say("a gateway's channel ends: {$error->getMessage()}");
            $this->end();
        } catch (HandoffException) {
            $this->end();
        }
    }

    private function readPacket(): bool
    {
        $received = Received::from($this->connection, PACKET_BYTES_MAX);
        if ($received === null) {
            return false;
        }
        try {
            if ($received->bytes === '' && $received->descriptors === []) {
                $this->end();
                return false;
            }
            $isGreeting = !$this->isGreeted && $received->uid === null && $received->descriptors === [];
            if (!$isGreeting && !$this->acceptor->isAllowed($received->uid, $received->gid)) {
                throw new ProtocolException('uid ' . ($received->uid ?? 'unknown') . ' may not hand over');
            }
            if ($received->isTruncated) {
                throw new ProtocolException('a packet or its descriptors were cut off');
            }
            $frames = Frame::decode($received->bytes);
            $count = array_sum(array_map(fn (Frame $frame): int => $frame->descriptors(), $frames));
            if ($count !== count($received->descriptors)) {
                throw new ProtocolException(count($received->descriptors) . " descriptors where $count belong");
            }
            // All of it is checked before any of it counts.
            $left = $received->descriptors;
            $known = $this->lent;
            $acts = [];
            foreach ($frames as $frame) {
                $acts[] = $this->check($frame, array_splice($left, 0, $frame->descriptors()), $known);
            }
        } catch (Throwable $error) {
            closeAll($received->descriptors);
            throw $error;
        }
        foreach ($acts as $act) {
            $act();
        }
        return true;
    }

    /**
     * What is to be done about a frame, once the whole packet is known to be right.
     *
     * @param list<Socket|resource> $descriptors its own
     * @param array<int, mixed> $known by id, what is in flight
     */
    private function check(Frame $frame, array $descriptors, array &$known): Closure
    {
        $kind = $frame->kind;
        if (!$this->isGreeted && $kind !== HELLO) {
            throw new ProtocolException("type $kind before HELLO");
        }
        if (in_array($kind, [HELLO, HANDOFF, REVOKE], true) && ($kind === HELLO) !== ($frame->id === 0)) {
            throw new ProtocolException("type $kind with id $frame->id");
        }
        switch ($kind) {
            case HELLO:
                $versions = Frame::readObject($frame->payload)['versions'] ?? null;
                if ($this->isGreeted || !is_array($versions) || !in_array(1, $versions, true)) {
                    throw new ProtocolException($this->isGreeted ? 'a second HELLO' : 'no version in common');
                }
                $this->isGreeted = true;
                break;
            case HANDOFF:
                return $this->checkHandoff($frame, $descriptors, $known);
            case REVOKE:
                $reason = Frame::readObject($frame->payload)['reason'] ?? '';
                return fn () => $this->revoke($frame->id, is_string($reason) ? $reason : '');
            case PING:
                return fn () => $this->send(Frame::encode(PONG, $frame->id, $frame->payload));
            case PONG:
                break;
            default:
                if ($kind >= TAKEN && $kind <= DRAINING || ($frame->flags & FLAG_OPTIONAL) === 0) {
                    throw new ProtocolException("type $kind");
                }
        }
        return function (): void {
        };
    }

    private function revoke(int $id, string $reason): void
    {
        if (isset($this->lent[$id])) {
            $this->lent[$id]->revokedFor = $reason;
            $this->acceptor->revoked($this->lent[$id]);
        }
    }

    /**
     * @param list<Socket|resource> $descriptors
     * @param array<int, mixed> $known
     */
    private function checkHandoff(Frame $frame, array $descriptors, array &$known): Closure
    {
        [$json, $data, $preread] = $frame->readSections(3);
        $metadata = Frame::readObject($json);
        if (isset($known[$frame->id])) {
            throw new ProtocolException("id $frame->id twice");
        }
        $known[$frame->id] = true;
        if ($frame->flags & FLAG_DATA && $data !== '' || $frame->flags & FLAG_PREREAD && $preread !== '') {
            throw new ProtocolException('what is in a memfd is in the packet too');
        }
        if (!isStreamSocket($descriptors[0])) {
            throw new ProtocolException('a client that is no stream socket');
        }
        $memfds = array_combine($frame->memfds(), array_slice($descriptors, 1));
        foreach ($memfds as $memfd) {
            if (!is_resource($memfd) || (fstat($memfd)['mode'] & 0170000) !== 0100000) {
                throw new ProtocolException('something else than a memfd behind the client');
            }
        }
        if (isset($memfds[FLAG_DATA])) {
            $data = bytesOf($memfds[FLAG_DATA], $this->acceptor->dataBytesMax);
        }
        if (isset($memfds[FLAG_PREREAD])) {
            $preread = bytesOf($memfds[FLAG_PREREAD], PREREAD_BYTES_MAX);
        }
        return function () use ($frame, $descriptors, $json, $metadata, $data, $preread, $memfds): void {
            closeAll([$memfds[FLAG_DATA] ?? null, $memfds[FLAG_PREREAD] ?? null]);
            $entry = new Entry($this->acceptor, $this, $frame->id);
            $this->lent[$frame->id] = $entry;
            $body = $memfds[FLAG_BODY] ?? null;
            $handoff = new Handoff($entry, $descriptors[0], $metadata, $data ?? '', $preread ?? '', $body,
                metadataJson: $json);
            $isServed = $data !== null && $preread !== null && strlen($data) <= $this->acceptor->dataBytesMax
                && $handoff->isFramingKnown();
            $this->acceptor->offer($handoff, $entry, $isServed ? null : 'unsupported');
        };
    }
}

/** Within a process of `serve`: the way to the first one, which speaks with the gateway. */
final class Upstream
{
    public bool $hasEnded = false;
    private ?Closure $sent = null;

    public function __construct(public readonly Socket $connection, private readonly Handoff $handoff)
    {
    }

    /** As a channel's; that the client is taken is said to the gateway by the first process, which answers then. */
    public function send(string $frame, ?Socket $client = null, ?Closure $sent = null): void
    {
        $this->sent = $sent;
        $message = ['iov' => [$frame]];
        $stream = $client === null ? null : socket_export_stream($client);
        if ($stream !== null) {
            $message['control'] = [['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => [$stream]]];
        }
        if ($this->hasEnded || @socket_sendmsg($this->connection, $message, MSG_NOSIGNAL) === false) {
            $this->end();
        }
        closeAll([$stream]);
    }

    public function read(): void
    {
        try {
            while (!$this->hasEnded && ($received = Received::from($this->connection, PACKET_BYTES_MAX)) !== null) {
                if ($received->bytes === '') {
                    $this->end();
                    return;
                }
                $frame = Frame::decode($received->bytes)[0];
                if ($frame->kind === REVOKE) {
                    $this->handoff->revoke((string) (Frame::readObject($frame->payload)['reason'] ?? ''));
                } else {
                    $this->answer(true);
                }
            }
        } catch (HandoffException) {
            $this->end();
        }
    }

    private function end(): void
    {
        $this->hasEnded = true;
        $this->answer(false);
    }

    private function answer(bool $isSent): void
    {
        [$sent, $this->sent] = [$this->sent, null];
        if ($sent !== null) {
            $sent($isSent);
        }
    }
}

/** A process of `serve`, seen from the first one, which passes on what it says of its client. */
final class Worker
{
    public bool $hasEnded = false;

    public function __construct(public readonly Socket $connection, private readonly Entry $entry)
    {
    }

    public function read(): void
    {
        try {
            while (!$this->hasEnded && ($received = Received::from($this->connection, PACKET_BYTES_MAX)) !== null) {
                if ($received->bytes === '') {
                    $this->end();
                    return;
                }
                $frame = Frame::decode($received->bytes)[0];
                if ($frame->kind === TAKEN) {
                    $this->entry->channel->send($received->bytes, null, function (bool $isSent): void {
                        $this->entry->isTaken = $isSent;
                        $isSent ? $this->tell(Frame::encode(TAKEN, $this->entry->id)) : $this->end();
                    });
                } else {
                    $this->entry->release();
                    $this->entry->channel?->send($received->bytes, array_shift($received->descriptors));
                }
                closeAll($received->descriptors);
            }
        } catch (HandoffException) {
            $this->end();
        }
    }

    public function revoke(Entry $entry): void
    {
        if ($entry === $this->entry) {
            $this->tell(Frame::json(REVOKE, $entry->id, ['reason' => $entry->revokedFor]));
        }
    }

    private function tell(string $frame): void
    {
        @socket_sendmsg($this->connection, ['iov' => [$frame]], MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    /** The process has ended; what it has not said is said for it. */
    public function end(): void
    {
        if ($this->hasEnded) {
            return;
        }
        $this->hasEnded = true;
        if (!$this->entry->isReleased) {
            $this->entry->release();
            $this->entry->channel?->send($this->entry->isTaken ? $this->entry->done('error', 'not finished')
                : Frame::json(REFUSED, $this->entry->id, ['reason' => 'overloaded']));
        }
    }
}

/** A client that was handed over, and all that is known of it. */
final class Handoff
{
    /** The gateway's name for this request; made up where it has sent none. */
    public readonly string $id;
    /** The request's, empty where it is not known. */
    public readonly string $method;
    /** The request's path and query as the client sent them, empty where it is not known. */
    public readonly string $target;
    /** @var list<array{string, string}> in order, with repeats, names in lower case */
    public readonly array $headers;
    /** What the policy wants this daemon to be, or nothing. */
    public readonly string $role;
    /** Whether the gateway has written the response's head, so that what is written now is its body. */
    public readonly bool $headSent;

    private int $process;
    private string $unread;
    private string $framing;
    private readonly int $length;
    private int $remaining;
    private int $memfdRead = 0;
    private string $chunkState = 'size';
    private bool $wantsContinue;
    private bool $isHeadKnown;
    private float $takenAt = 0.0;
    private int $bytesOut = 0;
    private ?int $status = null;
    private bool $isTaken = false;
    private bool $isOver = false;
    private bool $isWhole = false;
    private bool $keepsAlive = false;
    private bool $isHeadOnly = false;
    private bool $hasFailed = false;
    private float $patience = CLOSE_PATIENCE_S;

    /**
     * @internal
     * @param array<string, mixed> $metadata all that the gateway told; empty but in the dialect `baton`
     * @param string $data what the policy or the application sent along; in the dialect `datagram` the request's head
     * @param resource|null $memfd the body
     * @param resource|null $source where a program that was started for one client reads the body
     * @param resource|null $output where it writes its answer
     * @param ?array<string, string> $environment what it was started with
     * @param string $metadataJson the metadata as it came: PHP's arrays do not know an empty object from an empty list
     */
    public function __construct(
        private Entry $entry,
        private ?Socket $client,
        public readonly array $metadata = [],
        public readonly string $data = '',
        string $preread = '',
        private mixed $memfd = null,
        private mixed $source = null,
        private mixed $output = null,
        private readonly ?array $environment = null,
        public readonly string $metadataJson = '{}',
    ) {
        $this->process = (int) getmypid();
        $request = $this->section('request');
        $this->id = self::text($metadata['id'] ?? '') ?: bin2hex(random_bytes(16));
        $this->method = self::text($request['method'] ?? '');
        $this->target = self::text($request['target'] ?? '');
        $pairs = array_filter((array) ($request['headers'] ?? []), fn (mixed $pair): bool => is_array($pair)
            && count($pair) === 2 && is_string($pair[0] ?? null));
        $this->headers = array_values(array_map(fn (array $pair): array => [$pair[0], self::text($pair[1] ?? '')], $pairs));
        $role = $this->section('metadata')['role'] ?? '';
        $this->role = is_string($role) ? $role : '';
        $this->headSent = ($this->section('response')['head_sent'] ?? false) === true;
        // What stands before the socket's bytes; the head, where it was included, is known from the rest.
        $headBytes = $request['head_bytes'] ?? 0;
        $this->isHeadKnown = is_int($headBytes) && $headBytes >= 0 && $headBytes <= strlen($preread);
        $this->unread = substr($preread, $this->isHeadKnown ? $headBytes : 0);
        $body = $this->section('body');
        $this->framing = self::text($body['framing'] ?? 'none');
        $remaining = $this->framing === 'length' ? $body['remaining'] ?? 0 : 0;
        $this->length = $this->remaining = is_int($remaining) ? $remaining : -1;
        $this->wantsContinue = in_array($this->framing, ['length', 'chunked'], true)
            && ($request['version'] ?? '') !== '1.0'
            && str_contains(strtolower($this->header('expect') ?? ''), '100-continue');
    }

    public function __destruct()
    {
        if ($this->process === getmypid()) {
            $this->abandon();
        }
    }

    // --- describing ---

    /** The first header of that name. */
    public function header(string $name): ?string
    {
        foreach ($this->headers as [$key, $value]) {
            if ($key === strtolower($name)) {
                return $value;
            }
        }
        return null;
    }

    /** Written to the client so far; not what went through `socket()`. */
    public function bytesOut(): int
    {
        return $this->bytesOut;
    }

    /** Whether the gateway asked to end it; then the next write fails. */
    public function revoked(): bool
    {
        $this->entry->acceptor->lookAround();
        return $this->entry->revokedFor !== null;
    }

    /**
     * Whether the client has left, without writing. One that only ended its sending side looks the same; one with bytes
     * unread is not gone.
     */
    public function clientGone(): bool
    {
        $this->entry->acceptor->lookAround();
        if ($this->isOver || $this->hasFailed) {
            return true;
        }
        // Before it is taken, the client may not even be peeked at.
        if ($this->client === null || $this->unread !== '' || !$this->isTaken) {
            return false;
        }
        if (socket_get_option($this->client, SOL_SOCKET, SO_ERROR) !== 0) {
            return $this->hasFailed = true;
        }
        socket_clear_error($this->client);
        $count = @socket_recv($this->client, $byte, 1, MSG_PEEK | MSG_DONTWAIT);
        return $count === 0 || $count === false && socket_last_error($this->client) !== SOCKET_EAGAIN;
    }

    /** Waits until the client left or the handoff is revoked, at most so many seconds; whether that came. */
    public function gone(float $seconds = INF): bool
    {
        $end = now() + $seconds;
        while (!$this->clientGone() && $this->entry->revokedFor === null) {
            $left = $end - now();
            if ($left <= 0) {
                return false;
            }
            $this->entry->acceptor->turn(null, null, min($left, 0.05));
        }
        return true;
    }

    /**
     * What is known of the client as CGI variables (RFC 3875), and HANDOFF_DATA, HANDOFF_ID, HANDOFF_ROLE. Nothing is put
     * into this process's environment.
     *
     * @return array<string, string>
     */
    public function env(): array
    {
        if ($this->environment !== null) {
            return $this->environment;
        }
        $variables = ['GATEWAY_INTERFACE' => 'CGI/1.1', 'SERVER_SOFTWARE' => 'baton', 'HANDOFF_ID' => $this->id,
            'HANDOFF_ROLE' => $this->role ?: 'responder'];
        if ($this->headSent) {
            $variables['HANDOFF_HEAD_SENT'] = '1';
        }
        $client = $this->section('client');
        $server = $this->section('server');
        if ($this->metadata !== [] && $this->section('request') !== []) {
            $variables += $this->envOfRequest();
        } elseif ($this->client !== null && socket_get_option($this->client, SOL_SOCKET, SO_DOMAIN) !== AF_UNIX) {
            @socket_getpeername($this->client, $client['ip'], $client['port']);
            @socket_getsockname($this->client, $server['ip'], $server['port']);
        }
        foreach (['REMOTE' => $client, 'SERVER' => $server] as $side => $address) {
            $ip = preg_replace('/^::ffff:(?=[\d.]+$)/', '', self::text($address['ip'] ?? ''));
            if ($ip !== '') {
                $isBracketed = $side === 'SERVER' && str_contains($ip, ':');
                $variables += [$side === 'SERVER' ? 'SERVER_NAME' : 'REMOTE_ADDR' => $isBracketed ? "[$ip]" : $ip];
            }
            if (is_int($address['port'] ?? null)) {
                $variables["{$side}_PORT"] = (string) $address['port'];
            }
        }
        if (strlen($this->data) <= VARIABLE_BYTES_MAX && !str_contains($this->data, "\0")) {
            $variables['HANDOFF_DATA'] = $this->data;
        }
        return $variables;
    }

    /** @return array<string, string> */
    private function envOfRequest(): array
    {
        $request = array_map(self::text(...), $this->section('request'));
        $variables = ['REQUEST_METHOD' => $this->method, 'REQUEST_URI' => $this->target,
            'QUERY_STRING' => explode('?', $this->target, 2)[1] ?? '',
            'SERVER_PROTOCOL' => 'HTTP/' . (($request['version'] ?? '') ?: '1.1')];
        if (($request['scheme'] ?? '') === 'https' || $this->section('tls') !== []) {
            $variables['HTTPS'] = 'on';
        }
        $host = preg_replace('/:\d*$/', '', $request['authority'] ?? '');
        if ($host !== '') {
            $variables['SERVER_NAME'] = $host;
        }
        if (is_resource($this->memfd)) {
            $variables['CONTENT_LENGTH'] = (string) fstat($this->memfd)['size'];
        } elseif ($this->framing === 'length') {
            $variables['CONTENT_LENGTH'] = (string) $this->length;
        }
        foreach ($this->headers as [$name, $value]) {
            if ($name === 'content-type' || $name === 'content-length') {
                $variables += [strtr(strtoupper($name), '-', '_') => $value];
            } elseif ($name !== 'proxy' && !str_contains($name, '_')) { // HTTP_PROXY is what programs ask for their own proxy
                $variable = 'HTTP_' . strtr(strtoupper($name), '-', '_');
                $joint = $name === 'cookie' ? '; ' : ', ';
                $variables[$variable] = isset($variables[$variable]) ? $variables[$variable] . $joint . $value : $value;
            }
        }
        return $variables;
    }

    /** @return array<string, mixed> */
    private function section(string $name): array
    {
        return is_array($this->metadata[$name] ?? null) ? $this->metadata[$name] : [];
    }

    /** Text, or `{"base64":..}` where it is not UTF-8. */
    private static function text(mixed $value): string
    {
        if (is_array($value)) {
            return is_string($value['base64'] ?? null) ? (string) base64_decode($value['base64']) : '';
        }
        return is_string($value) ? $value : '';
    }

    // --- owning ---

    /** Takes it, as the first read or write does. Throws `ChannelGone` when that is too late. */
    public function take(): void
    {
        if ($this->isOver) {
            throw new HandoffException('the handoff is over');
        }
        if ($this->isTaken) {
            return;
        }
        if ($this->entry->channel !== null) {
            $isSent = null;
            $sent = function (bool $is) use (&$isSent): void {
                $isSent = $is;
            };
            $this->entry->channel->send(Frame::encode(TAKEN, $this->entry->id), null, $sent);
            // It must be known to have been sent before the client is touched.
            $end = now() + $this->entry->acceptor->writeTimeout;
            while ($isSent === null && now() < $end) {
                $this->entry->acceptor->turn(null, null, 0.05);
            }
            if ($isSent !== true) {
                $this->over();
                throw new ChannelGone('the gateway has left');
            }
        }
        $this->isTaken = $this->entry->isTaken = true;
        $this->takenAt = now();
    }

    /**
     * Gives it back untouched; only before it was taken. Other dialects than `baton` cannot: there the client is answered
     * 503, or 403 for `denied`, 501 for `unsupported`.
     */
    public function refuse(string $reason = 'overloaded', ?int $retryAfterS = null, ?string $message = null): void
    {
        if (!isset(REASONS[$reason])) {
            throw new InvalidArgumentException("$reason is none of " . implode(', ', array_keys(REASONS)));
        }
        if ($this->isTaken || $this->isOver) {
            throw new HandoffException('only a handoff that was not taken can be refused');
        }
        if ($this->entry->channel !== null) {
            // Our copy first: once the gateway hears of it, there is no other.
            $this->close();
            $this->entry->release();
            $this->entry->channel->send(Frame::json(REFUSED, $this->entry->id, ['reason' => $reason,
                'retry_after_s' => $retryAfterS, 'message' => self::cut($message)]));
            $this->over();
            return;
        }
        try {
            if (!$this->headSent) {
                $status = REASONS[$reason];
                $this->respond($status, $status === 503 ? ['Retry-After' => (string) ($retryAfterS ?? 1)] : []);
            }
            $this->finish(null, $this->headSent ? 'error' : 'ok');
        } catch (Ended) {
            // There is nobody to be told.
        } finally {
            $this->over();
        }
    }

    /** @internal Ends what nobody finished. */
    public function abandon(): void
    {
        if ($this->isOver) {
            return;
        }
        $this->patience = 0.0;
        $this->isTaken ? $this->end(null, 'error', 'not finished') : $this->refuse();
    }

    /** @internal Ends what a handler could not. */
    public function fail(Throwable $error): void
    {
        if (!$this->isOver && $this->isTaken) {
            $this->end(null, $error instanceof Ended ? $error::RESULT : 'error', $error->getMessage() ?: $error::class);
        }
    }

    /** @internal The first process's copy of what another one has now. */
    public function detach(): Entry
    {
        $this->isOver = true;
        $this->close();
        return $this->entry;
    }

    /** @internal In the process that has it now. */
    public function become(Upstream $upstream): void
    {
        $entry = new Entry($this->entry->acceptor, $this->entry->channel === null ? null : $upstream, $this->entry->id);
        $entry->revokedFor = $this->entry->revokedFor;
        $this->entry = $entry;
        $this->process = (int) getmypid();
    }

    /** @internal */
    public function isFramingKnown(): bool
    {
        return $this->isHeadKnown && in_array($this->framing, ['none', 'length', 'chunked', 'memfd'], true)
            && ($this->framing === 'memfd') === ($this->memfd !== null) && $this->length >= 0;
    }

    /** @internal */
    public function isNative(): bool
    {
        return $this->entry->channel !== null;
    }

    /** @internal Whether it was lent on that channel, and is over with it. */
    public function channelEnded(Channel $channel): bool
    {
        if ($this->entry->channel === $channel) {
            $this->over();
        }
        return $this->isOver;
    }

    /** @internal */
    public function revoke(string $reason): void
    {
        $this->entry->revokedFor = $reason;
    }

    private function close(): void
    {
        closeAll([$this->client, $this->memfd]);
        $this->client = $this->memfd = null;
    }

    private function over(): void
    {
        $this->close();
        $this->isOver = true;
        $this->entry->release();
    }

    private static function cut(?string $message): ?string
    {
        return $message === null ? null : substr($message, 0, 1024);
    }

    // --- reading ---

    /**
     * Some of the request's body, decoded; nothing at its end. A body that is cut throws `ClientGone`.
     */
    public function read(int $bytesMax = READ_BYTES): string
    {
        $this->take();
        $this->look();
        switch ($this->framing) {
            case 'memfd':
                // Wherever the gateway has left its position.
                $bytes = (string) stream_get_contents($this->memfd, $bytesMax, $this->memfdRead);
                $this->memfdRead += strlen($bytes);
                return $bytes;
            case 'chunked':
                return $this->readChunked($bytesMax);
            case 'until-end':
                return $this->arrive($bytesMax);
            default:
                return $this->remaining === 0 ? '' : $this->readCounted($bytesMax);
        }
    }

    /** All of the request's body that is left, if it is no longer than that. */
    public function body(int $bytesMax = PHP_INT_MAX): string
    {
        $body = '';
        while (($part = $this->read()) !== '') {
            $body .= $part;
            if (strlen($body) > $bytesMax) {
                throw new BodyException("a body of more than $bytesMax bytes");
            }
        }
        return $body;
    }

    private function look(): void
    {
        $this->entry->acceptor->lookAround();
        if ($this->entry->revokedFor !== null) {
            throw new Revoked($this->entry->revokedFor ?: 'the gateway asked to end it');
        }
    }

    private function wait(bool $isWrite, float $seconds, string $what): void
    {
        $end = now() + $seconds;
        do {
            $this->look();
            $left = $end - now();
            if ($left <= 0) {
                throw new Timeout("$what for $seconds s");
            }
            $turn = min($left, SIGNAL_LOOK_S);
            $stream = $isWrite ? $this->output : $this->source;
            if ($stream !== null) {
                [$read, $write, $except] = [$isWrite ? [] : [$stream], $isWrite ? [$stream] : [], []];
                $isReady = @stream_select($read, $write, $except, 0, (int) ($turn * 1e6)) > 0;
            } else {
                [$read, $write] = $isWrite ? [null, $this->client] : [$this->client, null];
                $isReady = $this->entry->acceptor->turn($read, $write, $turn);
            }
        } while (!$isReady);
    }

    /** Some of what the client sent; nothing at its end. */
    private function arrive(int $bytesMax): string
    {
        if ($this->unread !== '') {
            $bytes = substr($this->unread, 0, $bytesMax);
            $this->unread = substr($this->unread, strlen($bytes));
            return $bytes;
        }
        if ($this->wantsContinue) {
            $this->wantsContinue = false;
            if ($this->bytesOut === 0 && !$this->headSent) {
                $this->write("HTTP/1.1 100 Continue\r\n\r\n");
            }
        }
        while (true) {
            if ($this->source !== null) {
                $this->wait(false, $this->entry->acceptor->bodyTimeout, 'nothing of the body arrived');
                return (string) fread($this->source, $bytesMax);
            }
            socket_clear_error($this->client);
            $count = @socket_recv($this->client, $bytes, $bytesMax, MSG_DONTWAIT);
            if ($count !== false) {
                return (string) $bytes;
            }
            $error = socket_last_error($this->client);
            if (!in_array($error, [SOCKET_EAGAIN, SOCKET_EINTR], true)) {
                $this->hasFailed = true;
                throw new ClientGone('within the body: ' . socket_strerror($error));
            }
            $this->wait(false, $this->entry->acceptor->bodyTimeout, 'nothing of the body arrived');
        }
    }

    private function readCounted(int $bytesMax): string
    {
        $bytes = $this->arrive(min($bytesMax, $this->remaining));
        if ($bytes === '') {
            throw new ClientGone("the body ends $this->remaining bytes early");
        }
        $this->remaining -= strlen($bytes);
        return $bytes;
    }

    private function readChunked(int $bytesMax): string
    {
        while ($this->chunkState !== 'end') {
            if ($this->chunkState === 'size') {
                $digits = trim(explode(';', $this->line(CHUNK_LINE_BYTES_MAX), 2)[0], " \t");
                if (!preg_match('/^(?=.{1,16}$)0*[0-9a-fA-F]{1,15}$/D', $digits)) {
                    $shown = addcslashes(substr($digits, 0, 20), "\0..\37\177..\377");
                    throw new BodyException("a chunk's size '$shown'");
                }
                $this->remaining = (int) hexdec($digits);
                $this->chunkState = $this->remaining > 0 ? 'data' : 'trailer';
            } elseif ($this->chunkState === 'data') {
                $bytes = $this->readCounted($bytesMax);
                $this->chunkState = $this->remaining > 0 ? 'data' : "data's end";
                return $bytes;
            } elseif ($this->chunkState === "data's end") {
                if ($this->line(0) !== '') {
                    throw new BodyException('a chunk that is longer than its size');
                }
                $this->chunkState = 'size';
            } else {
                for ($left = TRAILER_BYTES_MAX; ($line = $this->line($left)) !== ''; $left -= strlen($line));
                $this->chunkState = 'end';
            }
        }
        return '';
    }

    /** A line without its end. What was read behind it stays in `unread`. */
    private function line(int $bytesMax): string
    {
        while (($end = strpos($this->unread, "\n")) === false) {
            if (strlen($this->unread) > $bytesMax + 1) {
                throw new BodyException("a line of more than $bytesMax bytes between chunks");
            }
            [$known, $this->unread] = [$this->unread, ''];
            try {
                $more = $this->arrive(READ_BYTES);
            } finally {
                $this->unread = $known . $this->unread;
            }
            if ($more === '') {
                throw new ClientGone('the body ends between chunks');
            }
            $this->unread .= $more;
        }
        $line = rtrim(substr($this->unread, 0, $end), "\r");
        if (strlen($line) > $bytesMax) {
            throw new BodyException("a line of more than $bytesMax bytes between chunks");
        }
        $this->unread = substr($this->unread, $end + 1);
        return $line;
    }

    private function isRead(): bool
    {
        return match ($this->framing) {
            'none', 'memfd' => true,
            'chunked' => $this->chunkState === 'end',
            default => $this->remaining === 0,
        };
    }

    // --- writing ---

    /** Writes all of it. Throws `ClientGone`, `Timeout` or `Revoked`. */
    public function write(string $bytes): int
    {
        $this->take();
        if ($this->isWhole) {
            throw new HandoffException('the response is whole');
        }
        $written = $this->isHeadOnly ? strlen($bytes) : 0;
        while ($written < strlen($bytes)) {
            $this->look();
            // A piece at a time: what is cut off is copied.
            $piece = substr($bytes, $written, READ_BYTES);
            if ($this->output !== null) {
                $this->wait(true, $this->entry->acceptor->writeTimeout, 'the client took nothing');
                $count = @fwrite($this->output, substr($piece, 0, 4096));
                $error = SOCKET_EPIPE;
            } else {
                socket_clear_error($this->client);
                $count = @socket_send($this->client, $piece, strlen($piece), MSG_DONTWAIT | MSG_NOSIGNAL);
                $error = socket_last_error($this->client);
            }
            if ($count !== false && $count > 0) {
                $written += $count;
                $this->bytesOut += $count;
            } elseif ($count === false && !in_array($error, [SOCKET_EAGAIN, SOCKET_EINTR], true)) {
                $this->hasFailed = true;
                throw new ClientGone(socket_strerror($error));
            } else {
                $this->wait(true, $this->entry->acceptor->writeTimeout, 'the client took nothing');
            }
        }
        return strlen($bytes);
    }

    /**
     * Writes a whole response. `$keepAlive` is for those that are given back, and says `close` where they cannot be.
     *
     * @param array<string, string>|list<array{string, string}> $headers
     */
    public function respond(int $status, array $headers = [], string $body = '', bool $keepAlive = false): void
    {
        $this->take();
        $this->begin($status);
        $this->keepsAlive = $keepAlive && $this->mayKeepAlive();
        $hasBody = !in_array($status, [204, 304], true);
        $own = ($hasBody ? ['Content-Length' => (string) strlen($body)] : [])
            + ['Connection' => $this->keepsAlive ? 'keep-alive' : 'close'];
        $head = $this->headSent ? '' : self::head($status, $headers, $own);
        $this->write($head . ($hasBody && $this->method !== 'HEAD' ? $body : ''));
        $this->isWhole = true;
    }

    /**
     * Writes a response's head. The body is what is written until the end.
     *
     * @param array<string, string>|list<array{string, string}> $headers
     */
    public function start(int $status, array $headers = []): void
    {
        $this->take();
        $this->begin($status);
        if (!$this->headSent) {
            $this->write(self::head($status, $headers, ['Connection' => 'close']));
            $this->isHeadOnly = $this->method === 'HEAD' || in_array($status, [204, 304], true);
        }
    }

    /** The client's own socket, non-blocking as the gateway had it; taken by asking for it. */
    public function socket(): Socket
    {
        $this->take();
        return $this->client ?? throw new HandoffException('there is no socket');
    }

    private function begin(int $status): void
    {
        if ($this->status !== null) {
            throw new HandoffException('the response was begun before');
        }
        if ($status < 200 || $status > 599) {
            throw new InvalidArgumentException("$status is no final status");
        }
        $this->status = $status;
    }

    private function mayKeepAlive(): bool
    {
        $connection = strtolower($this->header('connection') ?? '');
        return !str_contains($connection, 'close') && ($this->section('request')['version'] ?? '') !== '1.0'
            && $this->canReturn() && !$this->wantsContinue
            && ($this->framing === 'chunked' || $this->remaining <= DISCARDED_BYTES_MAX);
    }

    private function canReturn(): bool
    {
        $channel = $this->entry->channel;
        return $channel !== null && !$channel->hasEnded && !$this->headSent && $this->client !== null;
    }

    /**
     * @param array<string, string>|list<array{string, string}> $headers
     * @param array<string, string> $own
     */
    private static function head(int $status, array $headers, array $own): string
    {
        $head = rtrim("HTTP/1.1 $status " . (PHRASES[$status] ?? '')) . "\r\n";
        $names = array_map(strtolower(...), array_keys($own));
        foreach ($headers as $name => $value) {
            [$name, $value] = is_array($value) ? $value : [$name, $value];
            if (!preg_match('/^[^\s:]+$/D', (string) $name) || preg_match('/[\r\n\0]/', (string) $value)) {
                throw new InvalidArgumentException("$name cannot be a header");
            }
            if (in_array(strtolower((string) $name), $names, true)) {
                throw new InvalidArgumentException("$name is written by this library");
            }
            $head .= "$name: $value\r\n";
        }
        foreach ($own as $name => $value) {
            $head .= "$name: $value\r\n";
        }
        return "$head\r\n";
    }

    // --- ending ---

    /**
     * Closes the client so that it gets everything that was written, and reports to the gateway. With another result than
     * `ok` and `revoked`, a response that is not whole is reset, so that it does not look whole.
     */
    public function finish(?int $status = null, string $result = 'ok', ?string $message = null): void
    {
        if (!in_array($result, RESULTS, true)) {
            throw new InvalidArgumentException("$result is none of " . implode(', ', RESULTS));
        }
        $this->take();
        try {
            if ($this->client !== null && ($this->isWhole || in_array($result, ['ok', 'revoked'], true))) {
                $this->closeGracefully();
            }
        } finally {
            $this->end($status, $result, $message);
        }
    }

    /** Returns the client to the gateway for its next request, or finishes where that cannot be. */
    public function giveBack(?int $status = null): void
    {
        $this->take();
        if (!$this->isWhole || !$this->keepsAlive || !$this->canReturn() || !$this->discard()) {
            $this->finish($status);
            return;
        }
        [$client, $this->client] = [$this->client, null];
        $payload = Frame::sections(Frame::object($this->report($status, 'ok', null)), $this->unread);
        $this->entry->release();
        $this->entry->channel->send(Frame::encode(RETURN_, $this->entry->id, $payload), $client);
        $this->over();
    }

    /** Bytes that are unread at a close reset the connection, which can destroy the answer: so it reads for a moment. */
    private function closeGracefully(): void
    {
        @socket_shutdown($this->client, 1);
        $end = now() + $this->patience;
        do {
            socket_clear_error($this->client);
            $count = @socket_recv($this->client, $bytes, READ_BYTES, MSG_DONTWAIT);
            if ($count === 0 || $count === false && socket_last_error($this->client) !== SOCKET_EAGAIN) {
                return;
            }
            if ($count === false && ($left = $end - now()) > 0) {
                $this->entry->acceptor->turn($this->client, null, min($left, SIGNAL_LOOK_S));
            }
        } while (now() < $end);
    }

    /** Closes, then says so. */
    private function end(?int $status, string $result, ?string $message): void
    {
        if ($this->isOver) {
            return;
        }
        // What ends with the connection must not look whole when it is not.
        $isBegun = $this->bytesOut > 0 || $this->headSent;
        $isCut = $isBegun && !$this->isWhole && !in_array($result, ['ok', 'revoked'], true);
        if ($isCut && $this->client !== null) {
            @socket_set_option($this->client, SOL_SOCKET, SO_LINGER, ['l_onoff' => 1, 'l_linger' => 0]);
        }
        $this->close();
        $this->entry->release();
        $this->entry->channel?->send(Frame::json(DONE, $this->entry->id, $this->report($status, $result, $message)));
        $this->over();
    }

    /** @return array<string, mixed> */
    private function report(?int $status, string $result, ?string $message): array
    {
        return ['status' => $this->headSent ? null : $status ?? $this->status, 'bytes_out' => $this->bytesOut,
            'duration_us' => (int) round((now() - $this->takenAt) * 1e6), 'result' => $result,
            'message' => self::cut($message)];
    }

    /** Reads the rest of the body, so that the next request is what follows; not when that is too much. */
    private function discard(): bool
    {
        try {
            for ($discarded = 0; !$this->isRead() && $discarded <= DISCARDED_BYTES_MAX;) {
                $discarded += strlen($this->read());
            }
        } catch (HandoffException) {
            return false;
        }
        return $this->isRead() && strlen($this->unread) <= PACKET_BYTES_MAX - 4096;
    }
}

/** A connection of one handoff, until its message is whole. */
final class Incoming
{
    public string $data = '';
    /** @var list<Socket|resource> */
    public array $descriptors = [];
    public readonly float $deadline;
    private ?Received $first = null;

    public function __construct(public readonly Socket $connection)
    {
        $this->deadline = now() + RECEIVE_TIMEOUT_S;
    }

    /** Reads what is there; whether the message is whole. */
    public function read(Acceptor $acceptor): bool
    {
        while (($received = Received::from($this->connection, $acceptor->dataBytesMax + 1)) !== null) {
            array_push($this->descriptors, ...$received->descriptors);
            $this->data .= $received->bytes;
            $this->first ??= $received;
            if ($this->data !== '' && !$acceptor->isAllowed($this->first->uid, $this->first->gid)) {
                throw new ProtocolException('uid ' . ($this->first->uid ?? 'unknown') . ' may not hand over');
            }
            if ($received->isTruncated || strlen($this->data) > $acceptor->dataBytesMax) {
                throw new ProtocolException('the message is larger than allowed');
            }
            if (count($this->descriptors) > 1) {
                throw new ProtocolException(count($this->descriptors) . ' descriptors where one belongs');
            }
            if ($acceptor->dialect !== 'stream' || $received->bytes === '') {
                return true;
            }
        }
        return false;
    }

    /** The client, once the message is whole. */
    public function client(string $dialect): Socket
    {
        if ($this->descriptors === []) {
            throw new ProtocolException('no descriptor came with the message');
        }
        if ($dialect === 'fdpass' && $this->data !== "\0") {
            throw new ProtocolException('a message where this dialect has none');
        }
        if (!isStreamSocket($this->descriptors[0])) {
            throw new ProtocolException('the descriptor is not a stream socket');
        }
        if ($dialect !== 'datagram' && $this->data === "\0") {
            $this->data = '';
        }
        return array_shift($this->descriptors);
    }

    public function close(): void
    {
        closeAll($this->descriptors);
        $this->descriptors = [];
    }
}

/**
 * What `foreach` asks. A generator would keep the last one while it waits for the next.
 *
 * @implements Iterator<int, Handoff>
 */
final class Clients implements Iterator
{
    private ?Handoff $next = null;
    private int $count = 0;

    public function __construct(private readonly Acceptor $acceptor)
    {
    }

    public function rewind(): void
    {
        $this->next();
    }

    public function next(): void
    {
        $this->next = $this->acceptor->accept();
    }

    public function valid(): bool
    {
        return $this->next !== null;
    }

    public function key(): int
    {
        return $this->count++;
    }

    public function current(): Handoff
    {
        [$handoff, $this->next] = [$this->next, null];
        return $handoff;
    }
}

/**
 * Listens for clients that are handed over.
 *
 * @implements IteratorAggregate<int, Handoff>
 */
final class Acceptor implements IteratorAggregate
{
    private ?Socket $listener = null;
    /** @var array{string, int, int}|null path, device, inode */
    private ?array $file = null;
    /** @var list<int> */
    private readonly array $allowUids;
    /** @var array<int, Channel> */
    private array $channels = [];
    /** @var array<int, Incoming> */
    private array $incoming = [];
    /** @var array<int, Worker> */
    private array $workers = [];
    /** @var array<int, true> those of `serve` that have not been waited for, by pid */
    private array $processes = [];
    private ?Upstream $upstream = null;
    /** @var list<Handoff> */
    private array $queue = [];
    private int $inFlight = 0;
    private bool $isWanted = false;
    private bool $isStopAsked = false;
    private bool $hasStopped = false;
    private bool $isOne = false;
    private ?float $load = null;
    private float $servedAt = 0.0;
    private float $pauseUntil = 0.0;
    /** @var Closure(string): void */
    private readonly Closure $report;

    /**
     * @param ?string $path where. A socket file that nobody listens on any more is replaced, a live one is not. Null: what
     *     this process was started with, a listener (LISTEN_FDS, or standard input) or one client (a connected socket on
     *     standard input, or GATEWAY_INTERFACE in the environment): then that one comes, and then the end
     * @param ?list<int> $allowUids whose handoffs are taken, beside those of $allowGids. Null: the uids in
     *     BATON_GATEWAY_UIDS, separated by commas, or without it this process's own and root
     * @param list<int> $allowGids
     * @param int $inFlightMax clients at a time. Above it `baton` refuses, the other dialects wait in the backlog
     * @param int $dataBytesMax of one handoff's data
     * @param float $writeTimeout seconds without progress
     * @param float $bodyTimeout seconds without progress
     * @param list<string> $roles for people who look at the gateway, as the name
     * @param int $socketMode of the file. Who may write to it may connect; the uids are asked after that
     * @param ?Closure(string): void $report told what went wrong with a gateway. Null: error_log
     */
    public function __construct(
        ?string $path = null,
        public readonly string $dialect = 'baton',
        ?array $allowUids = null,
        private readonly array $allowGids = [],
        public readonly int $inFlightMax = 100,
        public readonly int $dataBytesMax = 1 << 20,
        public readonly float $writeTimeout = 30.0,
        public readonly float $bodyTimeout = 30.0,
        private readonly string $name = 'php',
        private readonly array $roles = [],
        int $socketMode = 0660,
        int $backlog = 128,
        ?Closure $report = null,
    ) {
        if (!isset(DIALECTS[$dialect])) {
            throw new InvalidArgumentException("$dialect is none of " . implode(', ', array_keys(DIALECTS)));
        }
        $this->allowUids = $allowUids ?? self::allowedUids();
        $this->report = $report ?? error_log(...);
        $path === null ? $this->inherit() : $this->bind($path, $socketMode, $backlog);
    }

    public function __destruct()
    {
        $this->close();
    }

    // --- for the program ---

    /** Waits for the next client; null once stopped. */
    public function accept(): ?Handoff
    {
        $this->isWanted = true;
        try {
            while (true) {
                if ($this->isStopAsked && !$this->hasStopped) {
                    $this->endListening();
                }
                if ($this->queue !== [] || $this->hasStopped) {
                    return array_shift($this->queue);
                }
                $this->turn(null, null, SIGNAL_LOOK_S);
            }
        } finally {
            $this->isWanted = false;
        }
    }

    public function getIterator(): Clients
    {
        return new Clients($this);
    }

    /**
     * Serves each client until stopped: with pcntl in a process of its own, one after the other without. In such a process
     * the handler runs and then it exits; nothing that it changes is seen by others. What a handler throws is reported to
     * the gateway.
     *
     * @param callable(Handoff): void $handler
     */
    public function serve(callable $handler): void
    {
        while (($handoff = $this->accept()) !== null) {
            if (!function_exists('pcntl_fork') || $this->isOne) {
                $this->run($handler, $handoff);
            } else {
                $this->fork($handler, $handoff);
            }
            unset($handoff);
        }
    }

    /** Tells every gateway how busy this daemon is, from 0 to 1. */
    public function load(float $load): void
    {
        $this->load = min(max($load, 0.0), 1.0);
        foreach ($this->channels as $channel) {
            $channel->send($this->loadFrame());
        }
    }

    /** Clients that were handed over and are not finished, given back or refused. */
    public function inFlight(): int
    {
        return $this->inFlight;
    }

    /**
     * Takes nobody any more: gateways are told, what still arrives is refused, `accept` gives the end. Those in flight go
     * on. May be called from a signal handler.
     */
    public function stop(): void
    {
        $this->isStopAsked = true;
    }

    /** After `stop`: waits for those in flight and closes. Whether all have finished. */
    public function drain(float $timeout = 30.0): bool
    {
        $this->stop();
        $end = now() + $timeout;
        do {
            if (!$this->hasStopped) {
                $this->endListening();
            }
            $isSaid = !array_filter($this->channels, fn (Channel $channel): bool => $channel->hasUnsent());
            if ($this->inFlight === 0 && $this->workers === [] && $isSaid) {
                break;
            }
            $this->turn(null, null, max(0.0, min($end - now(), SIGNAL_LOOK_S)));
        } while (now() < $end);
        $isEmpty = $this->inFlight === 0;
        foreach (array_keys($isEmpty || !function_exists('posix_kill') ? [] : $this->processes) as $pid) {
            posix_kill($pid, SIGKILL);
        }
        $this->close();
        return $isEmpty;
    }

    /** Closes the listener and every channel; the file is removed if it still is ours. */
    public function close(): void
    {
        $this->isStopAsked = true;
        if (!$this->hasStopped) {
            $this->endListening();
        }
        foreach ($this->channels as $channel) {
            $channel->read();
            $channel->flush();
            $channel->end();
        }
        $this->channels = [];
    }

    // --- for handoffs and channels ---

    /**
     * Waits until the socket can be read (or written), or for so many seconds, and serves the gateways meanwhile.
     *
     * @return bool whether it can
     */
    public function turn(?Socket $read, ?Socket $write, float $seconds): bool
    {
        if ($this->isStopAsked && !$this->hasStopped) {
            $this->endListening();
        }
        $this->servedAt = now();
        if ($this->servedAt < $this->pauseUntil) {
            $seconds = min($seconds, $this->pauseUntil - $this->servedAt);
        }
        $reading = $this->readable();
        $writing = array_filter($this->channels, fn (Channel $channel): bool => $channel->hasUnsent());
        $readable = array_map(fn (object $one): Socket => $one instanceof Socket ? $one : $one->connection, $reading);
        $writable = array_map(fn (Channel $channel): Socket => $channel->connection, array_values($writing));
        array_push($readable, ...($read === null ? [] : [$read]));
        array_push($writable, ...($write === null ? [] : [$write]));
        [$except, $microseconds] = [null, (int) (fmod($seconds, 1.0) * 1e6)];
        if ($readable === [] && $writable === []) {
            usleep((int) ($seconds * 1e6));
        } elseif (@socket_select($readable, $writable, $except, (int) $seconds, $microseconds) === false) {
            return false; // a signal
        }
        foreach ($writing as $channel) {
            $channel->flush();
        }
        foreach ($reading as $one) {
            if (in_array($one instanceof Socket ? $one : $one->connection, $readable, true)) {
                $this->readFrom($one);
            }
        }
        $this->clear();
        return in_array($read ?? $write, $read === null ? $writable : $readable, true);
    }

    /** Serves the gateways without waiting, not more often than is of use. */
    public function lookAround(): void
    {
        if (now() - $this->servedAt > 0.005) {
            $this->turn(null, null, 0.0);
        }
    }

    public function offer(Handoff $handoff, Entry $entry, ?string $refusedFor = null): void
    {
        // What a process has finished is known before its gateway may send the next.
        foreach ($this->workers as $worker) {
            $worker->read();
        }
        $isFull = $this->inFlight >= $this->inFlightMax;
        $this->inFlight++;
        if ($entry->channel !== null) {
            $reason = $this->isStopAsked ? 'draining' : $refusedFor ?? ($isFull ? 'overloaded' : null);
            if ($reason !== null) {
                $handoff->refuse($reason);
                return;
            }
        }
        $this->queue[] = $handoff;
    }

    public function released(Entry $entry): void
    {
        $this->inFlight--;
    }

    public function revoked(Entry $entry): void
    {
        foreach ($this->workers as $worker) {
            $worker->revoke($entry);
        }
    }

    /** Descriptors that find no room when they are received are closed by the kernel, clients and all. */
    public function hasRoom(): bool
    {
        $spare = [];
        while (count($spare) < 4 && ($one = @fopen('/dev/null', 'r')) !== false) {
            $spare[] = $one;
        }
        closeAll($spare);
        if (count($spare) < 4) {
            $this->pauseUntil = now() + EXHAUSTED_PAUSE_S;
            return false;
        }
        return true;
    }

    public function isAllowed(?int $uid, ?int $gid): bool
    {
        return in_array($uid, $this->allowUids, true) || in_array($gid, $this->allowGids, true);
    }

    public function say(string $message): void
    {
        ($this->report)($message);
    }

    // --- processes ---

    private function run(callable $handler, Handoff $handoff): void
    {
        try {
            $handler($handoff);
        } catch (Ended $error) {
            $handoff->fail($error);
        } catch (Throwable $error) {
            $handoff->fail($error);
            $this->say('a client: ' . $error->getMessage());
        } finally {
            $handoff->abandon();
        }
    }

    private function fork(callable $handler, Handoff $handoff): void
    {
        if (!socket_create_pair(AF_UNIX, SOCK_SEQPACKET, 0, $pair)) {
            return; // the handoff is dropped, which refuses it
        }
        [$ours, $its] = $pair;
        $pid = pcntl_fork();
        if ($pid === -1) {
            $this->say('no process for a client: ' . pcntl_strerror(pcntl_get_last_error()));
            return;
        }
        if ($pid > 0) {
            socket_close($its);
            $worker = new Worker($ours, $handoff->detach());
            $this->workers[spl_object_id($worker)] = $worker;
            $this->processes[$pid] = true;
            return;
        }
        socket_close($ours);
        $code = 0;
        try {
            $this->becomeWorker($its, $handoff);
            $this->run($handler, $handoff);
        } catch (Throwable $error) {
            $this->say('a client: ' . $error->getMessage());
            $code = 1;
        } finally {
            exit($code);
        }
    }

    /** Closes what belongs to the first process, other clients above all: a copy here would keep them open. */
    private function becomeWorker(Socket $upstream, Handoff $handoff): void
    {
        $this->file = null;
        closeAll([$this->listener]);
        $this->listener = null;
        foreach ($this->queue as $other) {
            $other->detach();
        }
        foreach ([...$this->channels, ...$this->workers, ...$this->incoming] as $one) {
            socket_close($one->connection);
        }
        [$this->queue, $this->channels, $this->workers, $this->incoming] = [[], [], [], []];
        $this->hasStopped = true;
        $this->processes = [];
        // What stops the daemon is sent to all its processes by terminals and service managers: this one's client goes on.
        pcntl_signal(SIGTERM, SIG_IGN);
        pcntl_signal(SIGINT, SIG_IGN);
        $this->upstream = new Upstream($upstream, $handoff);
        $handoff->become($this->upstream);
    }

    // --- how it listens ---

    private function bind(string $path, int $mode, int $backlog): void
    {
        $kind = DIALECTS[$this->dialect];
        self::removeStale($path, $kind);
        $listener = socket_create(AF_UNIX, $kind, 0);
        // The kernel says who sends a message if it was asked before; connections inherit it.
        socket_set_option($listener, SOL_SOCKET, SO_PASSCRED, 1);
        socket_set_nonblock($listener);
        // The file is made with no more than this, so that nobody slips in before it has its mode.
        $umask = umask(0777 & ~$mode);
        $isBound = @socket_bind($listener, $path);
        umask($umask);
        if (!$isBound || !chmod($path, $mode) || $kind !== SOCK_DGRAM && !socket_listen($listener, $backlog)) {
            throw new HandoffException("$path: " . socket_strerror(socket_last_error($listener)));
        }
        $found = lstat($path);
        $this->file = [realpath($path), $found['dev'], $found['ino']];
        $this->listener = $listener;
    }

    private static function removeStale(string $path, int $kind): void
    {
        clearstatcache();
        if (!file_exists($path) && !is_link($path)) {
            return;
        }
        if (filetype($path) === 'socket') {
            $probe = socket_create(AF_UNIX, $kind, 0);
            socket_set_nonblock($probe);
            if (!@socket_connect($probe, $path) && socket_last_error($probe) === SOCKET_ECONNREFUSED) {
                unlink($path);
                return;
            }
        }
        throw new HandoffException("$path: somebody listens there, or it is no socket");
    }

    /** @return list<int> Anything unclear is an error: rather nobody than the wrong one. */
    private static function allowedUids(): array
    {
        $listed = getenv('BATON_GATEWAY_UIDS');
        if ($listed === false) {
            return [0, function_exists('posix_geteuid') ? posix_geteuid() : fstat(tmpfile())['uid']];
        }
        $uids = array_map(trim(...), explode(',', $listed));
        if (array_filter($uids, fn (string $uid): bool => !ctype_digit($uid) || (int) $uid >= (1 << 32) - 1) !== []) {
            throw new InvalidArgumentException("BATON_GATEWAY_UIDS=$listed is no list of user ids separated by commas");
        }
        return array_map(intval(...), $uids);
    }

    private function inherit(): void
    {
        if (getenv('LISTEN_PID') === (string) getmypid() && (int) getenv('LISTEN_FDS') > 0) {
            if (getenv('LISTEN_FDS') !== '1') {
                throw new InvalidArgumentException('LISTEN_FDS is not 1: one listener is understood');
            }
            $this->adopt(self::socketOf(3) ?? throw new InvalidArgumentException('descriptor 3 is no socket'));
            return;
        }
        $isCgi = getenv('GATEWAY_INTERFACE') !== false;
        $input = self::socketOf(0);
        if ($input !== null && isStreamSocket($input) && socket_get_option($input, SOL_SOCKET, SO_ACCEPTCONN) === 0) {
            $this->one($input, $isCgi);
        } elseif ($isCgi) {
            $this->one(null, true);
        } elseif ($input !== null) {
            $this->adopt($input);
        } else {
            throw new InvalidArgumentException('no path, and neither a listener nor a client to start with');
        }
    }

    private static function socketOf(int $descriptor): ?Socket
    {
        $stream = @fopen("php://fd/$descriptor", 'r+');
        if ($stream === false || (fstat($stream)['mode'] & 0170000) !== 0140000) {
            return null;
        }
        return @socket_import_stream($stream) ?: null;
    }

    private function adopt(Socket $inherited): void
    {
        $kind = socket_get_option($inherited, SOL_SOCKET, SO_TYPE);
        if (socket_get_option($inherited, SOL_SOCKET, SO_DOMAIN) !== AF_UNIX || $kind !== DIALECTS[$this->dialect]) {
            throw new InvalidArgumentException("the inherited socket is of another type than $this->dialect has");
        }
        if (socket_get_option($inherited, SOL_SOCKET, SO_PASSCRED) === 0) {
            // What was sent before it was asked for has no sender's name: a HELLO may, a client may not.
            if ($this->dialect !== 'baton') {
                throw new InvalidArgumentException(
                    'the inherited socket is not told who sends (SO_PASSCRED, PassCredentials=yes)');
            }
            socket_set_option($inherited, SOL_SOCKET, SO_PASSCRED, 1);
        }
        if ($kind === SOCK_DGRAM || socket_get_option($inherited, SOL_SOCKET, SO_ACCEPTCONN) === 1) {
            socket_set_nonblock($inherited);
            $this->listener = $inherited;
        } else {
            // One gateway, and the end when it leaves.
            $this->isOne = true;
            $this->begin($inherited);
        }
    }

    /** One client and then the end: what this process was started for. */
    private function one(?Socket $client, bool $isCgi): void
    {
        $this->isOne = $this->hasStopped = true;
        $entry = new Entry($this, null, 0);
        if (!$isCgi) {
            $this->offer(new Handoff($entry, $client), $entry);
            return;
        }
        $environment = array_filter(getenv(), fn (string $name): bool => in_array($name, CGI_NAMES, true)
            || str_starts_with($name, 'HTTP_') || str_starts_with($name, 'HANDOFF_'), ARRAY_FILTER_USE_KEY);
        $headers = [];
        foreach ($environment as $name => $value) {
            if (str_starts_with($name, 'HTTP_')) {
                $headers[] = [strtr(strtolower(substr($name, 5)), '_', '-'), $value];
            } elseif (($name === 'CONTENT_TYPE' || $name === 'CONTENT_LENGTH') && $value !== '') {
                $headers[] = [strtr(strtolower($name), '_', '-'), $value];
            }
        }
        $length = $environment['CONTENT_LENGTH'] ?? '';
        $body = ctype_digit($length) ? ['framing' => 'length', 'remaining' => (int) $length] : ['framing' => 'none'];
        if ($client === null && $length === '') {
            $body = ['framing' => 'until-end'];
        } elseif (strtolower($environment['HTTP_TRANSFER_ENCODING'] ?? '') === 'chunked') {
            $body = ['framing' => 'chunked'];
        }
        $metadata = ['id' => $environment['HANDOFF_ID'] ?? null, 'body' => $body,
            'request' => ['method' => $environment['REQUEST_METHOD'] ?? '', 'target' => $environment['REQUEST_URI'] ?? '',
                'version' => substr($environment['SERVER_PROTOCOL'] ?? '', 5), 'headers' => $headers],
            'response' => ['head_sent' => ($environment['HANDOFF_HEAD_SENT'] ?? '') === '1'],
            'metadata' => ['role' => $environment['HANDOFF_ROLE'] ?? '']];
        $file = $environment['HANDOFF_DATA_FILE'] ?? null;
        $data = $file === null ? $environment['HANDOFF_DATA'] ?? ''
            : (string) file_get_contents($file, length: $this->dataBytesMax + 1);
        if (strlen($data) > $this->dataBytesMax) {
            throw new InvalidArgumentException("more than $this->dataBytesMax bytes of data");
        }
        $source = $client === null ? fopen('php://fd/0', 'r') : null;
        $client ??= self::socketOf(1);
        $output = $client === null ? fopen('php://fd/1', 'w') : null;
        $handoff = new Handoff($entry, $client, $metadata, $data, '', null, $source, $output, $environment);
        $this->offer($handoff, $entry);
    }

    // --- what happens on sockets ---

    /** @return list<Socket|Channel|Worker|Incoming|Upstream> whom to read from */
    private function readable(): array
    {
        if (now() < $this->pauseUntil) {
            return [...array_values($this->workers), ...($this->upstream === null ? [] : [$this->upstream])];
        }
        $reads = $this->isWanted && $this->queue === [] && $this->inFlight < $this->inFlightMax;
        $listens = ($this->dialect === 'baton' || $reads) && count($this->incoming) < INCOMING_MAX;
        return [...($listens && $this->listener !== null ? [$this->listener] : []), ...array_values($this->channels),
            ...array_values($this->workers), ...($reads ? array_values($this->incoming) : []),
            ...($this->upstream === null ? [] : [$this->upstream])];
    }

    private function readFrom(object $one): void
    {
        if ($one instanceof Incoming) {
            // In other dialects than `baton`, reading is taking: only what is waited for is read.
            if ($this->queue === [] && $this->isWanted && $this->hasRoom()) {
                $this->readIncoming($one);
            }
        } elseif (!$one instanceof Socket) {
            $one->read();
        } elseif ($this->dialect === 'datagram') {
            if ($this->hasRoom()) {
                $this->readDatagram($one);
            }
        } elseif (($connection = @socket_accept($one)) !== false) {
            $this->begin($connection);
        } elseif (!in_array(socket_last_error($one), [SOCKET_EAGAIN, SOCKET_ECONNABORTED, SOCKET_EINTR], true)) {
            $this->pauseUntil = now() + EXHAUSTED_PAUSE_S;
        }
    }

    private function begin(Socket $connection): void
    {
        socket_set_nonblock($connection);
        // One that was made before the listener was told to ask does not inherit it.
        socket_set_option($connection, SOL_SOCKET, SO_PASSCRED, 1);
        // Who it is, is known for sure by its first message. But once that is read, its client is ours: who can be told
        // from the others before, by its process, is closed unread, so that the client goes elsewhere.
        $ids = self::idsOf((int) socket_get_option($connection, SOL_SOCKET, SO_PEERCRED));
        if ($ids !== null && !$this->isAllowed(...$ids)) {
            $this->say("uid $ids[0] may not hand over");
            socket_close($connection);
            return;
        }
        if ($this->dialect !== 'baton') {
            $incoming = new Incoming($connection);
            $this->incoming[spl_object_id($incoming)] = $incoming;
            return;
        }
        $channel = new Channel($this, $connection);
        $channel->send(Frame::json(HELLO, 0, ['versions' => [1], 'name' => $this->name, 'pid' => getmypid(),
            'in_flight_max' => $this->inFlightMax, 'data_bytes_max' => $this->dataBytesMax,
            'roles' => $this->roles ?: null]));
        if ($this->load !== null) {
            $channel->send($this->loadFrame());
        }
        $this->channels[spl_object_id($channel)] = $channel;
    }

    /** @return array{int, int}|null effective uid and gid of a process, where it can be seen */
    private static function idsOf(int $pid): ?array
    {
        $status = $pid > 0 ? @file_get_contents("/proc/$pid/status") : false;
        if ($status === false || !preg_match('/^Uid:\t\d+\t(\d+).*?^Gid:\t\d+\t(\d+)/ms', $status, $found)) {
            return null;
        }
        return [(int) $found[1], (int) $found[2]];
    }

    private function readIncoming(Incoming $incoming): void
    {
        try {
            if (!$incoming->read($this)) {
                if (now() < $incoming->deadline) {
                    return;
                }
                throw new ProtocolException('it did not arrive in time');
            }
            $this->offerOne($incoming);
        } catch (ProtocolException | HandoffException $error) {
            // An empty connection is how others ask whether somebody listens.
            if ($incoming->data !== '' || $incoming->descriptors !== []) {
                $this->say("a message is dropped: {$error->getMessage()}");
            }
        }
        $incoming->close();
        unset($this->incoming[spl_object_id($incoming)]);
        socket_close($incoming->connection);
    }

    private function readDatagram(Socket $listener): bool
    {
        $incoming = new Incoming($listener);
        try {
            if (!$incoming->read($this)) {
                return false;
            }
            $this->offerOne($incoming);
        } catch (ProtocolException | HandoffException $error) {
            $this->say("a datagram is dropped: {$error->getMessage()}");
        }
        $incoming->close();
        return true;
    }

    private function offerOne(Incoming $incoming): void
    {
        $client = $incoming->client($this->dialect);
        $entry = new Entry($this, null, 0);
        $metadata = $this->dialect === 'fdpass' ? ['response' => ['head_sent' => true]] : [];
        $this->offer(new Handoff($entry, $client, $metadata, $incoming->data), $entry);
    }

    /** What waits in the backlog goes back to its gateway when the listener is closed; datagrams would be lost. */
    private function endListening(): void
    {
        $this->isStopAsked = $this->hasStopped = true;
        if ($this->file !== null) {
            [$path, $device, $inode] = $this->file;
            clearstatcache();
            $found = @lstat($path);
            if ($found !== false && [$found['dev'], $found['ino']] === [$device, $inode]) {
                @unlink($path);
            }
            $this->file = null;
        }
        if ($this->listener !== null) {
            while ($this->dialect === 'datagram' && $this->readDatagram($this->listener));
            socket_close($this->listener);
            $this->listener = null;
        }
        foreach ($this->incoming as $incoming) {
            $incoming->close();
        }
        $this->incoming = [];
        foreach ($this->channels as $channel) {
            $channel->send(Frame::encode(DRAINING));
        }
        $queue = $this->queue;
        $this->queue = [];
        foreach ($queue as $handoff) {
            if (!$handoff->isNative()) {
                $this->queue[] = $handoff;
            } else {
                $handoff->refuse('draining');
            }
        }
    }

    private function clear(): void
    {
        foreach ($this->channels as $key => $channel) {
            if (!$channel->isGreeted && now() > $channel->deadline) {
                $this->say("a gateway's channel ends: no HELLO");
                $channel->end();
            }
            if ($channel->hasEnded) {
                unset($this->channels[$key]);
                // Nobody has begun with these, and nobody may any more.
                [$queue, $this->queue] = [$this->queue, []];
                foreach ($queue as $handoff) {
                    $handoff->channelEnded($channel) ?: $this->queue[] = $handoff;
                }
                socket_close($channel->connection);
            }
        }
        foreach ($this->workers as $key => $worker) {
            if ($worker->hasEnded) {
                unset($this->workers[$key]);
                socket_close($worker->connection);
            }
        }
        foreach (array_keys($this->processes) as $pid) {
            if (pcntl_waitpid($pid, $status, WNOHANG) !== 0) {
                unset($this->processes[$pid]);
            }
        }
        if ($this->isOne && $this->channels === [] && $this->incoming === []) {
            $this->isStopAsked = true;
        }
    }

    private function loadFrame(): string
    {
        return Frame::json(LOAD, 0, ['in_flight' => $this->inFlight, 'load' => $this->load]);
    }
}
