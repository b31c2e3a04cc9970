<?php
// The front controller: who asks, and may they? A question to the model is not answered here: the client goes to the streaming
// daemon, together with the name of who is logged in, and this worker is free for the next request.

declare(strict_types=1);

/** A request's body: escaped for the handoff's data it is at most three times as long, which a message to the daemon holds. */
const BODY_BYTES_MAX = 64 * 1024;
/** Where the daemon listens. */
const SOCKET_DEFAULT = '/run/llm-chat/chat.sock';
/** A session that nobody used for so long is over. */
const IDLE_SECONDS_MAX = 8 * 3600;
/** Compared with the password of somebody who does not exist, so that names cannot be guessed by the time that it takes. */
const NOBODY = '$2y$10$d2h9/bbCXnryJA6jAWYMyOxQIrOQBVk2enJQbyZbtbhMBDIOVCIDG';

require __DIR__ . '/page.php';

function is_secure(): bool
{
    return ($_SERVER['HTTPS'] ?? '') === 'on';
}

function open_session(): void
{
    session_name(is_secure() ? '__Host-chat' : 'chat');
    session_start([
        'use_strict_mode' => true,
        'use_only_cookies' => true,
        'cookie_httponly' => true,
        'cookie_samesite' => 'Strict',
        'cookie_secure' => is_secure(),
        'cookie_path' => '/',
        'cache_limiter' => '',
        'gc_maxlifetime' => IDLE_SECONDS_MAX,
    ]);
    if (time() - ($_SESSION['used'] ?? 0) > IDLE_SECONDS_MAX) {
        $_SESSION = [];
    }
    $_SESSION['used'] = time();
    $_SESSION['token'] ??= bin2hex(random_bytes(32));
}

/** The request was made by our own page: it knows the session's token, which no other site can read. */
function is_ours(string $token): bool
{
    $site = $_SERVER['HTTP_SEC_FETCH_SITE'] ?? 'same-origin';
    return in_array($site, ['same-origin', 'none'], true) && hash_equals($_SESSION['token'], $token);
}

/** A field of a form; not what somebody made a list of. */
function field(string $name): string
{
    return is_string($_POST[$name] ?? null) ? $_POST[$name] : '';
}

function headers_of_all(): void
{
    header("Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        . "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'");
    header('X-Content-Type-Options: nosniff');
    header('Referrer-Policy: no-referrer');
    header('Cache-Control: no-store');
}

function home(): never
{
    http_response_code(303);
    header('Location: /');
    exit;
}

/** What the script in the page reads; the daemon's errors look the same. */
function fail(int $status, string $error, string $message): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    exit(json_encode(['error' => $error, 'message' => $message]) . "\n");
}

function log_in(): void
{
    $name = field('name');
    $users = require __DIR__ . '/users.php';
    $is_right = password_verify(field('password'), $users[$name] ?? NOBODY) && isset($users[$name]);
    if (!is_ours(field('token'))) {
        http_response_code(403);
        login_page($_SESSION['token'], $name, 'That took too long. Please log in again.');
    } elseif (!$is_right) {
        http_response_code(401);
        login_page($_SESSION['token'], $name, 'That name and password do not go together.');
    } else {
        // Whoever knew the session from before knows this one not.
        session_regenerate_id(true);
        $_SESSION['user'] = $name;
        $_SESSION['token'] = bin2hex(random_bytes(32));
        home();
    }
}

function log_out(): never
{
    if (!is_ours(field('token'))) {
        fail(403, 'not-ours', 'This request did not come from our page.');
    }
    $_SESSION = [];
    session_regenerate_id(true);
    home();
}

function hand_over(): never
{
    $user = $_SESSION['user'] ?? fail(401, 'logged-out', 'You are not logged in any more.');
    if (!is_ours($_SERVER['HTTP_X_CSRF_TOKEN'] ?? '')) {
        fail(403, 'not-ours', 'This request did not come from our page.');
    }
    $body = file_get_contents('php://input', false, null, 0, BODY_BYTES_MAX + 1);
    if (strlen($body) > BODY_BYTES_MAX) {
        fail(413, 'too-long', 'This conversation is too long. Please begin a new one.');
    }
    $asked = json_decode($body, true, 16);
    if (!is_array($asked)) {
        fail(400, 'bad-request', 'The request is no JSON.');
    }
    // The name is the session's: whatever else the browser says of itself is left behind. What the conversation has to look
    // like is the daemon's business, which answers 400 where it does not.
    $data = ['user' => $user, 'messages' => $asked['messages'] ?? null];
    header('X-Socket-Handoff: ' . (getenv('CHAT_SOCKET') ?: SOCKET_DEFAULT));
    header('X-Handoff-Data: ' . json_encode($data, JSON_THROW_ON_ERROR));
    exit;
}

headers_of_all();
open_session();
match ($_SERVER['REQUEST_METHOD'] . ' ' . parse_url('http://x' . $_SERVER['REQUEST_URI'], PHP_URL_PATH)) {
    'GET /', 'HEAD /' => isset($_SESSION['user'])
        ? chat_page($_SESSION['token'], $_SESSION['user'])
        : login_page($_SESSION['token'], '', null),
    'POST /login' => log_in(),
    'POST /logout' => log_out(),
    'POST /chat' => hand_over(),
    default => fail(404, 'not-found', 'There is nothing here.'),
};
