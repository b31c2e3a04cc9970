<?php
// Who may come in: name => password_hash(). Yours come from a database.
//
//     php -r 'echo password_hash(readline("password: "), PASSWORD_DEFAULT), "\n";'

declare(strict_types=1);

return [
    'alice' => '$2y$10$ouivryFbP9st/pER9VOIsecEQb2Wh5eoQxyqVOzr9kfbmgPm9/v2O', // open sesame
];
