"""The customers: real HTTP requests, of which some fail and some are broken off."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
import httpx

Visit: TypeAlias = Callable[[httpx.AsyncClient, int], Awaitable[str]]


async def order(client: httpx.AsyncClient, number: int) -> str:
    """Order a pizza and get it."""
    menu = ["basil", "tomato", "mozzarella", "olives", "anchovies"]
    toppings = menu[: 1 + number % len(menu)]
    response = await client.post("/pizzas", json={"toppings": toppings, "size": 30})
    return str(response.status_code)


async def order_the_impossible(client: httpx.AsyncClient, _: int) -> str:
    """Order what makes the application fail."""
    # A server closes the connection on which an application failed, right after its answer. A request that is sent on
    # it meanwhile is lost, and must not be repeated if it is an order; so no other customer is to get this connection.
    hang_up = {"Connection": "close"}
    response = await client.post("/pizzas", json={"toppings": ["pineapple"]}, headers=hang_up)
    return str(response.status_code)


async def look(client: httpx.AsyncClient, number: int) -> str:
    """Ask for a pizza; there is none with the number 0."""
    response = await client.get(f"/pizzas/{number % 3}")
    return str(response.status_code)


async def peep(client: httpx.AsyncClient, _: int) -> str:
    """See whether the shop is open."""
    response = await client.head("/")
    return str(response.status_code)


async def hang_up_while_watching(client: httpx.AsyncClient, _: int) -> str:
    """Leave in the middle of a response."""
    async with client.stream("GET", "/oven") as response:
        async for _line in response.aiter_lines():
            break
    return "hung up"


async def hang_up_while_ordering(client: httpx.AsyncClient, _: int) -> str:
    """Leave in the middle of a request, once the application has it."""
    address = urlsplit(str(client.base_url))
    async with await anyio.connect_tcp(str(address.hostname), address.port or 80) as stream:
        # "Expect" makes the server answer when the application begins to read the body, which will never be whole.
        await stream.send(b"POST /pizzas HTTP/1.1\r\nHost: pizza\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n")
        await stream.receive()
        await stream.send(b'{"toppings": [')
    return "hung up"


VISITS: list[Visit] = [
    order,
    look,
    order,
    hang_up_while_watching,
    order,
    peep,
    order,
    order_the_impossible,
    order,
    look,
    order,
    hang_up_while_ordering,
]


async def send_customers(url: str, requests: int, served: Callable[[str], object], *, at_once: int = 10) -> None:
    """Make so many requests, `at_once` of them at a time, and tell `served` how each ended."""
    numbers = iter(range(requests))

    async def visit(client: httpx.AsyncClient) -> None:
        for number in numbers:
            served(await VISITS[number % len(VISITS)](client, number))

    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        served(await order(client, next(numbers)))  # alone, so that pizza 1 is there for those who look for it
        async with anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(visit, client)
