/// The demo's data: short word problems of eight kinds, one kind for each client, made anew from a seed.
///
/// Every kind has one rule (take what is asked for, double, halve, add a fixed number), small numbers and common
/// words, so that a very small model can learn it in a minute; a model that has not seen the kind answers wrongly.

import Datasets
import Primitives

enum DemoData {
    /// What the field `kind` holds: the natural split of the data, `by:kind`.
    enum Kind: String, CaseIterable {
        case ages, comparing, distance, lookup, sharing, shopping, tanks, time
    }

    /// Records with the fields `prompt`, `completion` and `kind`, the kinds in turn.
    struct Sets {
        let training: [Record]
        /// No prompt of it stands in `training`.
        let evaluation: [Record]
    }

    /// - Parameters:
    ///   - trainingCount: of records of each kind
    ///   - evaluationCount: likewise; together at most 600 (each kind has over 1,000 different problems)
    /// - Throws: only if a kind cannot make that many different problems.
    static func make(trainingCount: Int, evaluationCount: Int, seed: UInt64) throws(Failure) -> Sets {
        var training: [[Problem]] = []
        var evaluation: [[Problem]] = []
        for kind in Kind.allCases {
            var generator = SeededGenerator(seed: seed, purpose: "demo data", client: kind.rawValue)
            var seen: Set<String> = []
            var problems: [Problem] = []
            var tries = 0
            while problems.count < trainingCount + evaluationCount {
                let problem = Problem(kind, &generator)
                if seen.insert(problem.question).inserted { problems.append(problem) }
                tries += 1
                guard tries < 100 * (trainingCount + evaluationCount) else {
                    throw Failure(
                        .usage,
                        "there are fewer than \(trainingCount + evaluationCount) demo problems of the kind \(kind.rawValue)")
                }
            }
            training.append(Array(problems.prefix(trainingCount)))
            evaluation.append(Array(problems.suffix(evaluationCount)))
        }
        return Sets(
            training: try records(training, count: trainingCount, path: "demo-train.jsonl"),
            evaluation: try records(evaluation, count: evaluationCount, path: "demo-eval.jsonl"))
    }

    private static func records(_ problems: [[Problem]], count: Int, path: String) throws(Failure) -> [Record] {
        var records: [Record] = []
        for index in 0..<count {
            for (kind, problems) in zip(Kind.allCases, problems) {
                let fields = [
                    JSONValue.Member("prompt", .string(prompt(problems[index].question))),
                    JSONValue.Member("completion", .string(" " + problems[index].answer)),
                    JSONValue.Member("kind", .string(kind.rawValue)),
                ]
                records.append(try Record(fields: fields, path: path, line: records.count + 1))
            }
        }
        return records
    }

    /// How a question is put to the demo's model, which saw this form when it was trained.
    static func prompt(_ question: String) -> String { "Question: \(question)\nAnswer:" }
}

/// One word problem with its answer in a sentence.
private struct Problem {
    let question: String
    let answer: String

    private static let names = [
        "Alice", "Anna", "Ben", "Bob", "Jack", "James", "Jane", "John", "Kate", "Lisa", "Maria", "Mary", "Mike", "Paul", "Sam",
        "Tom",
    ]
    /// Singular; the plural adds an s.
    private static let things = [
        "apple", "ball", "book", "card", "cup", "egg", "orange", "pen", "pencil", "shirt", "ticket", "toy",
    ]
    private static let places = ["beach", "farm", "lake", "library", "market", "park", "river", "school", "shop", "store"]

    init(_ kind: DemoData.Kind, _ generator: inout SeededGenerator) {
        func two(_ words: [String]) -> (String, String) {
            let first = generator.integer(below: words.count)
            let other = (first + 1 + generator.integer(below: words.count - 1)) % words.count
            return (words[first], words[other])
        }
        func number(_ range: ClosedRange<Int>) -> Int { range.lowerBound + generator.integer(below: range.count) }
        let (name, friend) = two(Self.names)
        let (thing, other) = two(Self.things)
        let (place, _) = two(Self.places)
        let first = number(2...9)
        var second = number(2...8)
        if second >= first { second += 1 }  // never equal
        switch kind {
        case .ages:
            question = "\(name) is \(first) years old. \(friend) is 2 years older than \(name). How old is \(friend)?"
            answer = "\(friend) is \(first + 2) years old."
        case .comparing:
            question = "\(name) has \(first) \(thing)s. \(friend) has \(second) \(thing)s. Who has more \(thing)s?"
            answer = "\(first > second ? name : friend) has more \(thing)s."
        case .distance:
            question = "\(name) walks \(first) miles to the \(place) and then back home. How many miles does \(name) walk?"
            answer = "\(name) walks \(2 * first) miles."
        case .lookup:
            let isFirst = generator.integer(below: 2) == 0
            question =
                "\(name) has \(first) \(thing)s and \(second) \(other)s. How many \(isFirst ? thing : other)s does \(name) have?"
            answer = "\(name) has \(isFirst ? first : second) \(isFirst ? thing : other)s."
        case .sharing:
            question = "\(name) and \(friend) share \(2 * first) \(thing)s equally. How many \(thing)s does each of them get?"
            answer = "Each of them gets \(first) \(thing)s."
        case .shopping:
            question = "One \(thing) costs $\(first). \(name) buys 2 \(thing)s. How much does \(name) pay?"
            answer = "\(name) pays $\(2 * first)."
        case .tanks:
            question =
                "A tank at the \(place) holds \(first + 1) gallons of water. \(name) takes out 1 gallon. How many gallons are left?"
            answer = "There are \(first) gallons left."
        case .time:
            question = "\(name) goes to the \(place) at \(first) and stays for 3 hours. When does \(name) leave?"
            answer = "\(name) leaves at \(first + 3)."
        }
    }
}
