"""Django's model signals for SQLAlchemy's `AsyncSession`, awaited, and delivered after the commit if so wished.

Needs the extra `asignals[sqlalchemy]`: SQLAlchemy 2.0 or 2.1. Runs on asyncio only, as SQLAlchemy's `AsyncSession` does.

    maker = enable_signals(async_sessionmaker(engine))

    @pre_save.connect(sender=User)
    async def normalise(instance, created, update_fields, session): ...

    @post_save.connect(sender=User, on="commit")
    async def welcome(instance, created): ...

    @m2m_changed.connect(sender=Pizza.toppings)
    async def menu_changed(instance, action, pk_set): ...

Receivers may be sync or async, and run one after the other in the order of their priorities. Sync ones run inside of the
session's greenlet, so lazy loads work in them; async ones are awaited in the session's task. They get the `AsyncSession`
as `session` (the sync `Session` where there is no other). A plain sync session works with sync receivers.

**In the flush** (the default) an exception of a receiver is raised from whatever flushed, a query's autoflush included,
and a note says so. Before the flush (`pre_save`, `pre_delete`, `m2m_changed` with a `pre_` action) nothing has been
written, and the session is as it was; what receivers add and change goes into the same flush. After it the transaction,
or the savepoint, is rolled back as for any error of a flush; what receivers add and change is left for the next flush.
Receivers are called for what was inserted, in the order in which it was added, then for what was updated, then for what
was deleted. They may query, but not flush, commit, roll back or close the session. `before_flush` listeners of your own
should be registered before `enable_signals`: what they add later is written without a `pre_save`.

**After the transaction** (`on="commit"`, `on="rollback"`, `on_commit`, `transaction_committed`,
`transaction_rolled_back`): once the outermost transaction has ended, its connection is back in the pool, and the `with`
block that began it has ended. Whether something was committed is asked of the database's transaction that it was
written in: with several databases each is told by its own COMMIT, and other listeners that raise change nothing. What
happened in a savepoint goes with the savepoint. A session that has joined an outer transaction (`rollback_only`) has
its last word with its own commit. Where a COMMIT fails and may have been carried out all the same (the connection was
lost before the answer came; a two-phase commit had been prepared), neither end is told, and that is logged as an error:
`commit()` has raised, and the tables show what became of it. Exceptions are logged to the logger `asignals` and change nothing.

Each receiver finds an idle session, which it may use. What it leaves open there is committed when it returns, and
rolled back when it raises; receivers of what was written so are called before the next one. Attributes that were
loaded in the flush, of the instances and of those that they refer to, are readable as they were then, whether or not
the commit (`expire_on_commit`) or a rollback has expired them; `await session.refresh(instance)` asks for what the
database has. Afterwards they are expired again. What the flush has left to the database (server defaults, `onupdate`,
SQL expressions that are not `deferred`) is loaded by one SELECT for receivers that could not load it themselves: async
ones, and all that are called after the end.

**Old and new values**: `changes` maps attributes to `(old, new)`, in every phase. `NO_VALUE`
(`sqlalchemy.orm.LoaderCallableStatus.NO_VALUE`) stands for what SQLAlchemy does not know without asking the database:
the old values of an insert, of what was set while it was not loaded, and of what was changed in place (`MutableDict`,
`flag_modified`); the new values of a deletion; and, before the flush, what the flush or the database will set. Values
are not copied: one that is changed in place later shows that.

**Foreign keys** that a relationship sets are taken from it by the flush. In `pre_save` the attribute still has its old
value; `changes` and `update_fields` name it, with its new value if the parent has its key already. To move a child in
`pre_save`, set the relationship: it wins over the foreign key.

**Statements** (`session.execute(update(User)…)`) load no instances: `pre_bulk` and `post_bulk` are sent for ORM-enabled
ones, and with `enable_signals(…, bulk="rows")` also `post_save` and `post_delete` for each row. `delete(User)` is one of
them, and no cascade of the ORM's: rows that the database deletes by itself are not known to anybody. Not ORM-enabled, and
so not seen, are Core statements (`insert(User.__table__)`, `text(…)`), and INSERT, UPDATE and DELETE inside of a CTE.

**Cancellation** cancels a receiver in the flush, and the transaction is rolled back. From the COMMIT on nothing is cut
short: the commit, or rollback, and the receivers after it run in a separate task, in a copy of the context; whoever
is cancelled waits for them, and is cancelled after that. A `timeout` keeps an async receiver from taking too long. The
end of `async with maker.begin()` is run by SQLAlchemy in a separate task, so a cancellation that comes while it
flushes reaches no receiver either.

Coming from Django:

| Django | here | why |
|---|---|---|
| `sender` is the exact class | subclasses are heard too, each instance once; `subclasses=False` for the exact class | polymorphic loading gives instances of subclasses |
| `sender="app.Model"` | `"Model"` or `"module.Model"`, connected once it is mapped | there are no apps |
| `using` | `session` | it has the connection |
| `raw` | none | there are no fixtures |
| `created` | the same; `False` for an instance that takes over the row of a deleted one | SQLAlchemy updates that row |
| `update_fields` is what `save()` was given | what the UPDATE sets, `onupdate` columns and version counters included; `None` when created | the session knows what has changed |
| old values need a library, or a query | `changes` | the session knows them |
| `pre_save`, `post_save` for each `save()` | for each INSERT or UPDATE of a flush; none without a net change | there is no `save()` |
| `post_save` before the transaction ends | the same; `on="commit"` and `on="rollback"` for after it | no callback in each receiver |
| `pre_delete`, `post_delete` with `origin` | without; also for orphans | a flush has no one origin |
| `m2m_changed`, sender is `Pizza.toppings.through` | sender is `Pizza.toppings` or `Topping.pizzas`, each from its own side | association tables have no class |
| `pre_clear`, `post_clear` | `pre_remove`, `post_remove` with all that was there | the history names them |
| `pk_set` | the same, and `objects`; in `pre_add` without those that have no key yet | pending objects can be added |
| `reverse` | true on the side that the association table names second | both sides are declared alike |
| `pre_init`, `post_init` | the same, sync only; `post_init` for loaded instances too, with their `session` | constructors cannot be awaited |
| `QuerySet.update()` and others send nothing | `pre_bulk`, `post_bulk` | a cache wants to know |
| `QuerySet.delete()` sends signals for each row | with `bulk="rows"` | it loads them |
| `transaction.on_commit(callback, using)` | `on_commit(session, callback)` | |
| without a transaction it is called at once | it begins the session's transaction, as `session.add()` does | a session begins by itself |
| an exception in it keeps the others from running (`robust=False`) | it is logged, the others run | the data is committed |

Not seen: rows that the database deletes or changes by itself, and `bulk_save_objects` and its like. A relationship with
`post_update=True` is one event with the foreign key among its changes, though SQLAlchemy sends two statements.
"""  # noqa: E501  the rows of the table

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ModuleNotFoundError as _error:
    _msg = "sqlalchemy is not installed; get it with: pip install 'asignals[sqlalchemy]'"
    raise ModuleNotFoundError(_msg, name=_error.name) from _error

from asignals.sqlalchemy._after import transaction_committed as transaction_committed
from asignals.sqlalchemy._after import transaction_rolled_back as transaction_rolled_back
from asignals.sqlalchemy._bulk import post_bulk as post_bulk
from asignals.sqlalchemy._bulk import pre_bulk as pre_bulk
from asignals.sqlalchemy._errors import AsyncReceiverError as AsyncReceiverError
from asignals.sqlalchemy._errors import EndlessFlushError as EndlessFlushError
from asignals.sqlalchemy._errors import FlushInProgressError as FlushInProgressError
from asignals.sqlalchemy._errors import SignalsNotEnabledError as SignalsNotEnabledError
from asignals.sqlalchemy._instances import post_init as post_init
from asignals.sqlalchemy._instances import pre_init as pre_init
from asignals.sqlalchemy._links import m2m_changed as m2m_changed
from asignals.sqlalchemy._saves import post_delete as post_delete
from asignals.sqlalchemy._saves import post_save as post_save
from asignals.sqlalchemy._saves import pre_delete as pre_delete
from asignals.sqlalchemy._saves import pre_save as pre_save
from asignals.sqlalchemy._sessions import enable_signals as enable_signals
from asignals.sqlalchemy._transactions import on_commit as on_commit

__all__ = [
    "AsyncReceiverError",
    "EndlessFlushError",
    "FlushInProgressError",
    "SignalsNotEnabledError",
    "enable_signals",
    "m2m_changed",
    "on_commit",
    "post_bulk",
    "post_delete",
    "post_init",
    "post_save",
    "pre_bulk",
    "pre_delete",
    "pre_init",
    "pre_save",
    "transaction_committed",
    "transaction_rolled_back",
]
