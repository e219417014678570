/// Classification as a person types it: train, evaluate, simulate, and what is refused.

import FoundationEssentials
import Primitives
import TestSupport
import Testing

private struct Place {
    let place: Workplace
    let model: String
    let data: String

    init(isBare: Bool = false) throws {
        place = try Workplace()
        model = place.file("encoder")
        data = place.file("texts.jsonl")
        try TinyEncoder.write(isBare: isBare, to: model)
        try place.write(data, TinyEncoder.records(12))
    }

    func train(_ output: String, _ more: [String] = []) -> [String] {
        [
            "model", "train", "--model", model, "--data", data, "--task", "classify", "--label-field", "category", "--steps",
            "40",
            "--batch-size", "6", "--sequence-length", "24", "--rank", "4", "--learning-rate", "5e-3", "--output",
            place.file(output),
        ] + more
    }

    func evaluate(_ more: [String]) -> [String] {
        ["model", "eval", "--model", model, "--data", data, "--task", "classify", "--label-field", "category"] + more
    }

    func simulate(_ output: String, _ more: [String] = []) -> [String] {
        [
            "simulate", "--model", model, "--data", data, "--clients", "2", "--task", "classify", "--label-field", "category",
            "--rounds", "2", "--local-steps", "2", "--batch-size", "2", "--sequence-length", "24", "--ranks", "4",
            "--eval-data", data, "--output", place.file(output),
        ] + more
    }
}

@Suite struct ClassifyCommandTests {
    @Test(arguments: [false, true]) func aTrainedClassifierIsWrittenAndEvaluated(isBare: Bool) throws {
        let place = try Place(isBare: isBare)
        let trained = try place.place.json(place.train("tuned"))
        #expect(trained["target_tokens"]?.int == 240 && (trained["last_loss"]?.double ?? 9) < (trained["loss"]?.double ?? 0))
        let labels = try JSONValue(parsing: place.place.bytes(place.place.file("tuned/labels.json")))
        #expect(labels.elements?.compactMap(\.text) == TinyEncoder.labels)
        #expect(place.place.exists(place.place.file("tuned/head.safetensors")) == isBare)
        let result = try place.place.json(place.evaluate(["--adapter", place.place.file("tuned")]))
        #expect((result["accuracy"]?.double ?? 0) > 0.5 && (result["macro_f1"]?.double ?? 0) > 0.4)
        #expect(result["examples"]?.int == 12 && result["labels"]?.int == 3 && result["perplexity"] == nil)
        // The same labels, named.
        for labels in [TinyEncoder.labels.joined(separator: ", "), place.place.file("tuned/labels.json")] {
            let named = try place.place.json(place.evaluate(["--adapter", place.place.file("tuned"), "--labels", labels]))
            #expect(named["accuracy"] == result["accuracy"])
        }
    }

    @Test func labelsOfAnAdapterAreItsOwn() throws {
        let place = try Place()
        let workplace = place.place
        let tuned = workplace.file("tuned")
        #expect(try workplace.run(place.train("tuned", ["--steps", "1"])).status == 0)
        // This data has two of the three labels.
        try workplace.write(workplace.file("small.jsonl"), TinyEncoder.records(2))
        let small = ["--data", workplace.file("small.jsonl"), "--init-adapter", tuned]
        let taken = try workplace.run(place.simulate("taken", small))
        #expect(taken.status == 0, "\(taken.errors)")
        let run = try JSONValue(parsing: workplace.bytes(workplace.file("taken/run.json")))
        #expect(run["plan"]?["labels"]?.elements?.compactMap(\.text) == TinyEncoder.labels)
        // Another order is another head.
        try workplace.write(workplace.file("other.txt"), "\u{feff}fruit\r\ntool\r\nanimal\r\n")
        for labels in ["fruit, tool,animal", workplace.file("other.txt")] {
            for arguments in [
                place.train("x", ["--init-adapter", tuned]), place.simulate("y", small), place.evaluate(["--adapter", tuned]),
            ] {
                let finished = try workplace.run(arguments + ["--labels", labels])
                #expect(finished.status != 0 && finished.errors.contains("in another order"), "\(arguments): \(finished.errors)")
            }
        }
        // A head whose labels nobody knows is taken at the word of who names them.
        try FileManager.default.removeItem(atPath: tuned + "/labels.json")
        for arguments in [
            place.train("x", ["--init-adapter", tuned]), place.simulate("y", small), place.evaluate(["--adapter", tuned]),
        ] {
            let refused = try workplace.run(arguments)
            #expect(refused.status != 0 && refused.errors.contains("no labels.json"), "\(arguments): \(refused.errors)")
            let named = try workplace.run(arguments + ["--labels", "animal,fruit,tool"])
            #expect(named.status == 0, "\(arguments): \(named.errors)")
        }
        try workplace.write(tuned + "/labels.json", #"["animal", "tool", "animal"]"#)
        let repeated = try workplace.run(place.evaluate(["--adapter", tuned]))
        #expect(
            repeated.status != 0 && repeated.errors.contains(#"labels.json names "animal" twice"#), "\(repeated.errors)")
    }

    @Test func labelsOfACheckpointsOwnHeadAreItsOwn() throws {
        let place = try Place()
        let workplace = place.place
        func name(_ labels: [String]) throws {
            var json = try JSONValue(parsing: workplace.bytes(place.model + "/config.json"))
            json.set("id2label", .object(labels.enumerated().map { .init(String($0), .string($1)) }))
            try workplace.write(place.model + "/config.json", json.compact)
        }
        func refusal(_ more: [String]) throws -> String {
            let finished = try workplace.run(place.evaluate(more))
            #expect(finished.status != 0, "\(more)")
            return finished.errors
        }
        let inOrder = ["--labels", TinyEncoder.labels.joined(separator: ",")]
        // LABEL_0 and so on say nothing: whoever names the labels knows them.
        let told = try workplace.json(place.evaluate(inOrder))
        #expect(try refusal(["--labels", "LABEL_1,LABEL_0,LABEL_2"]).contains("output 0 is \"LABEL_0\", not \"LABEL_1\""))
        try name(TinyEncoder.labels)
        #expect(try workplace.json(place.evaluate([]))["accuracy"] == told["accuracy"])
        #expect(try workplace.json(place.evaluate(inOrder))["accuracy"] == told["accuracy"])
        for labels in ["fruit,tool,animal", "animal,tool,fruit", "animal,fruit,tools"] {
            let sentence = try refusal(["--labels", labels])
            #expect(sentence.contains("another order") && sentence.contains("leave --labels out"), "\(labels): \(sentence)")
        }
        #expect(try refusal(["--labels", "animal,fruit,tool,toy"]).contains("tells 3 labels apart, not the 4 of --labels"))
        // What nobody uses may be wrong.
        try name(["animal", "fruit", "animal"])
        let sentence = try refusal([])
        #expect(sentence.contains(#"config.json: id2label names "animal" twice"#), "\(sentence)")
        let trained = try workplace.run(place.train("tuned", ["--steps", "1"]))
        #expect(trained.status == 0, "\(trained.errors)")
        #expect(try workplace.run(place.evaluate(["--adapter", workplace.file("tuned")])).status == 0)
    }

    @Test func aStartIsReportedWithoutPerplexity() throws {
        let place = try Place()
        let report = ["model", "start-report", "--model", place.model, "--quantize", "nf4", "--rank", "8"]
        let result = try place.place.json(report)
        let (plain, started) = (result["relative_error"]?.double ?? 0, result["relative_error_with_start"]?.double ?? 9)
        #expect(0 < started && started < plain && plain < 0.2)
        #expect(result["format"]?.text == "nf4" && result["perplexity"]?.isNull == true)
        let refused = try place.place.run(report + ["--data", place.data])
        #expect(refused.status == ExitStatus.usage.rawValue && refused.errors.contains("leave --data out"), "\(refused.errors)")
    }

    @Test func aSimulationFillsInItsLabelsAndTellsAccuracy() throws {
        let place = try Place()
        let finished = try place.place.run(
            place.simulate(
                "run",
                [
                    "--partition", "dirichlet:5:category", "--write-partitions", place.place.file("parts"), "--text-field",
                    "text",
                ]))
        #expect(finished.status == 0, "\(finished.errors)")
        #expect(finished.output.contains("accuracy") && finished.output.contains("macro F1"))
        let run = try JSONValue(parsing: place.place.bytes(place.place.file("run/run.json")))
        #expect(run["plan"]?["labels"]?.elements?.compactMap(\.text) == TinyEncoder.labels)
        #expect(run["initial_eval_accuracy"]?.double != nil)
        for line in try place.place.text(place.place.file("run/metrics.jsonl")).split(separator: "\n") {
            let metrics = try JSONValue(parsing: line.utf8)
            #expect(0...1 ~= (metrics["eval_accuracy"]?.double ?? -1) && 0...1 ~= (metrics["eval_macro_f1"]?.double ?? -1))
        }
        #expect(try place.place.text(place.place.file("parts/labels.txt")) == "animal\nfruit\ntool\n")
        let commands = try place.place.text(place.place.file("parts/commands.txt"))
        #expect(commands.contains("--labels") && commands.contains("--label-field category"))
        #expect(commands.split(separator: "\n").dropFirst().allSatisfy { $0.contains(" --text-field text") })
        // The same records, read in another way, are another run's.
        let otherwise = try place.place.run(place.simulate("run", ["--partition", "dirichlet:5:category"]))
        #expect(otherwise.status != 0 && otherwise.errors.contains("--text-field differs"), "\(otherwise.errors)")
        #expect(place.place.exists(place.place.file("run/adapter/labels.json")))
        let report = try place.place.run([
            "report", place.place.file("run"), "--output", place.place.file("r.html"), "--markdown",
        ])
        #expect(report.status == 0 && report.output.contains("accuracy") && report.output.contains("macro F1"))
        // The run goes on from its adapter.
        let more = try place.place.run(place.simulate("more", ["--init-adapter", place.place.file("run/adapter")]))
        #expect(more.status == 0, "\(more.errors)")
    }

    @Test func whatCannotWorkIsRefusedInOneSentence() throws {
        let place = try Place()
        try place.place.write(place.place.file("labels.txt"), "animal\nfruits\ntool\n")
        let cases: [(arguments: [String], expected: String)] = [
            (["model", "generate", "--model", place.model, "--prompt", "a"], "classifies texts and writes none"),
            (place.evaluate(["--labels", "a,b,c", "--exact-match", "3"]), "--exact-match"),
            (place.evaluate(["--labels", place.place.file("labels.txt")]), "texts.jsonl:2: the label \"fruit\""),
            (place.train("x", ["--label-field", "intent"]), "\"intent\""),
            (place.train("x", ["--text-field", "query"]), "\"query\""),
            (place.train("x", ["--model", place.place.model]), "predicts tokens"),
            (place.simulate("y", ["--exact-match", "3"]), "exact-match"),
            (place.simulate("y", ["--task", "causal"]), "--task classify"),
            (place.simulate("y", ["--labels", "animal,fruit"]), "texts.jsonl:3: the label \"tool\""),
            (place.simulate("y", ["--labels", "animal"]), "animal"),
            (place.simulate("y", ["--labels", "animal,,fruit"]), "--labels"),
            (place.evaluate(["--labels", "animal,,fruit"]), "--labels"),
            (place.place.evaluate(["--label-field", "kind"]), "--label-field means nothing"),
            (place.place.simulate("y", ["--label-field", "kind"]), "--label-field means nothing"),
        ]
        for (arguments, expected) in cases {
            let finished = try place.place.run(arguments)
            #expect(finished.status != 0 && finished.errors.contains(expected), "\(arguments): \(finished.errors)")
        }
    }

    @Test func faultsOfLabelsNameTheirFile() throws {
        let place = try Place()
        let file = place.place.file("labels.txt")
        let faults = [
            ("one\n", "labels.txt holds 1 label"), ("one\ntwo\none\n", "label 3 is \"one\" again, which is label 1"),
            ("one\nt\u{1b}wo\n", "label 2 holds a control character"),
        ]
        for (text, sentence) in faults {
            try place.place.write(file, text)
            for arguments in [place.train("x", ["--labels", file]), place.simulate("y", ["--labels", file])] {
                let finished = try place.place.run(arguments)
                #expect(
                    finished.status == ExitStatus.badData.rawValue && finished.sentence.contains(sentence), "\(finished.errors)")
            }
        }
        // What a file holds does not command the terminal.
        try place.place.write(place.data, TinyEncoder.records(12) + #"{"text": "a", "category": "x\u001b[31my"}"# + "\n")
        let finished = try place.place.run(place.train("x", ["--labels", TinyEncoder.labels.joined(separator: ",")]))
        #expect(finished.sentence.contains("the label \"x\\u{1b}[31my\"") && !finished.errors.contains("\u{1b}"))
        let template = try place.place.run(place.train("x", ["--chat-template", "chatml"]))
        #expect(template.sentence.contains("--chat-template means nothing to --task classify"))
    }

    @Test func anAdapterThatLostItsHeadIsRefused() throws {
        let place = try Place(isBare: true)
        #expect(try place.place.run(place.train("tuned", ["--steps", "1"])).status == 0)
        let tuned = place.place.file("tuned")
        try FileManager.default.removeItem(atPath: tuned + "/head.safetensors")
        for arguments in [
            place.train("x", ["--init-adapter", tuned]), place.simulate("y", ["--init-adapter", tuned]),
            place.evaluate(["--adapter", tuned]),
        ] {
            let finished = try place.place.run(arguments)
            #expect(finished.status == ExitStatus.badData.rawValue, "\(finished.errors)")
            #expect(finished.sentence.contains("head.safetensors is missing"))
        }
    }
}
