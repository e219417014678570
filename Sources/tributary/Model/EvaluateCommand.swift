/// `tributary model eval`: loss, perplexity and exact match of a model on a data file.

import ArgumentParser
import Checkpoints
import Datasets
import Model
import Primitives
import Programs
import Training

struct EvaluateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval", abstract: "Measure loss, perplexity and exact match on a data file.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: ArgumentHelp("Folder of a PEFT adapter.", valueName: "dir")) var adapter: String?
    @Option(name: .long, help: ArgumentHelp("JSONL or CSV with text, prompt and completion, or messages.", valueName: "file"))
    var data: String
    @Option(name: .long, help: ArgumentHelp("Let the model write each completion in at most this many tokens.", valueName: "n"))
    var exactMatch: Int?
    @Option(name: .long, help: ArgumentHelp("Compare only what follows this text, such as \"####\".", valueName: "text"))
    var exactMatchMarker = ""
    @Option(name: .long, help: ArgumentHelp("Only the first so many examples.", valueName: "n")) var limit: Int?
    @Option(name: .long, help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        try require((exactMatch ?? 1) >= 1, "exact-match is \(exactMatch ?? 0): it is a number of new tokens, at least 1")
        try require((limit ?? 1) >= 1, "limit is \(limit ?? 0): it is at least 1")
        let (checkpoint, language) = try base.load()
        let model = try AdaptedModel(model: language, weights: try adapterWeights(adapter, language))
        let text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
        let positions = checkpoint.configuration.maximumPositions
        let encoded = try text.examples(path: data, sequenceLength: positions)
        if let notes = dataNotes(encoded, sequenceLength: positions) { Console.error(notes) }
        let examples = Array(encoded.examples.prefix(limit ?? .max))
        var line = ProgressLine()
        var writing: ProgressLine?
        let outcome = try Evaluation.evaluate(
            model: model, examples: examples,
            exactMatch: exactMatch.map { ExactMatch(maximumTokens: $0, marker: exactMatchMarker) },
            tokenizer: text.tokenizer, endTokens: text.endTokens
        ) { done, count in
            if done <= examples.count {
                line.show(done: done, of: count, unit: "examples", "evaluated \(done) of \(examples.count) examples")
            } else {
                // Writing takes far longer than reading: it has a rate of its own.
                if writing == nil { writing = ProgressLine() }
                let written = done - examples.count
                writing?.show(
                    done: written, of: examples.count, unit: "examples",
                    "writing completion \(written) of \(examples.count)")
            }
            return !Interrupts.isInterrupted
        }
        line.finish()
        result.write([
            ("loss", real(outcome.loss)), ("perplexity", real(outcome.perplexity)),
            ("target_tokens", .integer(outcome.targetTokens)),
            ("examples", .integer(outcome.examples)), ("exact_match", outcome.exactMatch.map(real) ?? .null),
            ("cut", .integer(encoded.cutCount)), ("dropped", .integer(encoded.droppedCount)), ("seconds", real(line.seconds)),
        ]) {
            """
            loss           \(Readable.decimal(outcome.loss, 5)) nats per target token
            perplexity     \(Readable.decimal(outcome.perplexity, 3))
            target tokens  \(outcome.targetTokens)
            examples       \(outcome.examples)
            exact match    \(outcome.exactMatches.map { "\($0) of \(outcome.examples), \(Readable.decimal(100 * (outcome.exactMatch ?? 0), 1)) %" } ?? "not measured (--exact-match N)")

            """
        }
    }
}
