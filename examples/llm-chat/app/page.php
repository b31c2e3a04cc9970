<?php
// The two pages. What they look like is in ../public/chat.css, what they do in ../public/chat.js.

declare(strict_types=1);

function text(string $text): string
{
    return htmlspecialchars($text, ENT_QUOTES | ENT_SUBSTITUTE | ENT_HTML5);
}

function beginning(string $title, string $class): void
{
    header('Content-Type: text/html; charset=utf-8');
    ?>
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">
<meta name="color-scheme" content="light dark">
<title><?= text($title) ?></title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/chat.css">
</head>
<body class="<?= text($class) ?>">
<?php
}

function login_page(string $token, string $name, ?string $error): void
{
    beginning('Log in', 'login');
    ?>
<main>
  <h1>Log in</h1>
  <p class="soft">Ask a language model. Your answer comes word by word.</p>
<?php if ($error !== null): ?>
  <p class="alert" id="error" role="alert"><?= text($error) ?></p>
<?php endif ?>
  <form method="post" action="/login">
    <input type="hidden" name="token" value="<?= text($token) ?>">
    <label for="name">Name</label>
    <input id="name" name="name" value="<?= text($name) ?>" autocomplete="username" autocapitalize="none"
           spellcheck="false" required<?= $name === '' ? ' autofocus' : '' ?>>
    <label for="password">Password</label>
    <input id="password" name="password" type="password" autocomplete="current-password" required<?=
      $name === '' ? '' : ' autofocus' ?><?= $error === null ? '' : ' aria-invalid="true" aria-describedby="error"' ?>>
    <button id="login">Log in</button>
  </form>
</main>
</body>
</html>
<?php
}

function chat_page(string $token, string $user): void
{
    beginning('Chat', 'chat');
    ?>
<header>
  <h1>Chat</h1>
  <button id="new" type="button" class="quiet">New chat</button>
  <form method="post" action="/logout">
    <input type="hidden" name="token" value="<?= text($token) ?>">
    <span class="soft" id="user"><?= text($user) ?></span>
    <button id="logout" class="quiet">Log out</button>
  </form>
</header>
<main id="conversation" tabindex="-1" aria-label="Conversation">
  <div id="welcome">
    <h2>What would you like to know?</h2>
    <p class="soft">Enter sends, Shift and Enter begin a new line, Escape stops an answer.</p>
  </div>
  <ol id="messages"></ol>
  <div id="problem" class="alert" role="alert" hidden>
    <p><strong id="problem-title"></strong> <span id="problem-text"></span></p>
    <button id="again" type="button" class="quiet">Try again</button>
  </div>
</main>
<form id="ask" data-token="<?= text($token) ?>">
  <label for="question" class="hidden">Your message</label>
  <textarea id="question" rows="1" maxlength="16000" placeholder="Your message" autofocus required></textarea>
  <button id="send">Send</button>
  <button id="stop" type="button" hidden>Stop</button>
</form>
<p id="state" class="hidden" role="status"></p>
<script src="/chat.js"></script>
</body>
</html>
<?php
}
