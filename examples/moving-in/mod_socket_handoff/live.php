<?php
// Who asks? Whatever the application does to find out, it does here.
$user = $_COOKIE['user'] ?? '';
if (!preg_match('/^[a-z]+$/', $user)) {
    http_response_code(401);
    exit("who are you?\n");
}
// The client is the daemon's from here on; nobody sees what is still written, and this worker is free.
setcookie('seen', '1');
header('X-Socket-Handoff: /run/chat.sock');
header('X-Handoff-Data: ' . json_encode(['user' => $user, 'room' => $_GET['room'] ?? null]));
