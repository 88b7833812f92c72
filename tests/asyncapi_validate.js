// Reads a document from stdin, and prints as JSON what AsyncAPI's own parser finds wrong with it.
const { Parser } = require("@asyncapi/parser")

async function main() {
  const text = require("fs").readFileSync(0, "utf8")
  const { document, diagnostics } = await new Parser().parse(text)
  const found = diagnostics
    .filter(each => each.code !== "asyncapi-latest-version")
    .map(each => `${each.code} at ${each.path.join("/")}: ${each.message}`)
  console.log(JSON.stringify(document === undefined && !found.length ? ["no document"] : found))
}

main()
