// Reads documents by name from stdin, and prints as JSON what AsyncAPI's own parser finds wrong with each of them.
const { Parser } = require("@asyncapi/parser")

async function main() {
  const all = {}
  for (const [name, text] of Object.entries(JSON.parse(require("fs").readFileSync(0, "utf8")))) {
    const { document, diagnostics } = await new Parser().parse(text)
    const found = diagnostics
      .filter(each => each.code !== "asyncapi-latest-version")
      .map(each => `${each.code} at ${each.path.join("/")}: ${each.message}`)
    all[name] = document === undefined && !found.length ? ["no document"] : found
  }
  console.log(JSON.stringify(all))
}

main()
