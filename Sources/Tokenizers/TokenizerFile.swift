/// Reading parts of `tokenizer.json` with errors that name the file and the part.

import Primitives

/// One JSON object of the file, with the name of where it stands.
struct FilePart {
    let path: String
    /// "model", "pre_tokenizer", "decoder.decoders[2]", ...
    let name: String
    let value: JSONValue

    init(path: String, name: String, value: JSONValue) {
        self.path = path
        self.name = name
        self.value = value
    }

    /// The whole file.
    init(reading bytes: [UInt8], path: String) throws(Failure) {
        do {
            self.init(path: path, name: "", value: try JSONValue(parsing: bytes))
        } catch {
            throw Failure(.badData, "\(path) is not JSON: \(error.message) at byte \(error.position); is the file complete?")
        }
    }

    func failure(_ problem: String) -> Failure { Failure(.badData, "\(path): \(problem)") }

    func unsupported(_ what: String) -> Failure {
        failure(
            "\(what) in \"\(name)\" is not supported; Tributary reads byte-level BPE as GPT-2, Llama 3, Qwen and RoBERTa use it, "
                + "BPE with byte fallback as Llama 2 uses it, and BERT's WordPiece")
    }

    /// The member, absent where it is missing or null.
    func part(_ key: String) -> FilePart? {
        guard let member = value[key], !member.isNull else { return nil }
        return FilePart(path: path, name: name.isEmpty ? key : "\(name).\(key)", value: member)
    }

    func required(_ key: String) throws(Failure) -> FilePart {
        guard let part = part(key) else { throw failure("\"\(name.isEmpty ? key : "\(name).\(key)")\" is missing") }
        return part
    }

    func parts(_ key: String) throws(Failure) -> [FilePart] {
        let list = try required(key)
        guard let elements = list.value.elements else { throw list.wrong("an array") }
        return elements.enumerated().map { FilePart(path: path, name: "\(list.name)[\($0.offset)]", value: $0.element) }
    }

    func wrong(_ wanted: String) -> Failure { failure("\"\(name)\" must be \(wanted), not \(value.kind)") }

    func text() throws(Failure) -> String {
        guard let text = value.text else { throw wrong("a string") }
        return text
    }

    func text(_ key: String) throws(Failure) -> String { try required(key).text() }

    func bool(_ key: String, default standard: Bool) throws(Failure) -> Bool {
        guard let part = part(key) else { return standard }
        guard let value = part.value.bool else { throw part.wrong("true or false") }
        return value
    }

    func int(_ key: String) throws(Failure) -> Int {
        let part = try required(key)
        guard let value = part.value.int else { throw part.wrong("an integer") }
        return value
    }

    /// The "type" of a component.
    func type() throws(Failure) -> String {
        guard value.members != nil else { throw wrong("an object") }
        return try text("type")
    }

    /// Refuses steps that together could make a short text fill the memory, as thirty that replace one letter by two would.
    ///
    /// - Parameter factors: how many times as long each makes a text, at most
    func checkGrowth(_ factors: [Int]) throws(Failure) {
        var product = 1
        for factor in factors {
            let (next, overflow) = product.multipliedReportingOverflow(by: factor)
            guard !overflow, next <= Self.largestGrowth else {
                throw failure("\"\(name)\" could make a text more than \(Self.largestGrowth) times as long: not supported")
            }
            product = next
        }
    }

    /// BERT's normalizer comes to 12, the one that SentencePiece models have to 12.
    private static let largestGrowth = 1024

    /// A token id: not negative, and small enough that a table by id is no danger to memory.
    func tokenID(_ value: JSONValue, _ what: @autoclosure () -> String) throws(Failure) -> Int32 {
        guard let id = value.int, 0...Self.largestTokenID ~= id else {
            throw failure("the id of \(what()) must be an integer in 0...\(Self.largestTokenID)")
        }
        return Int32(id)
    }

    /// The largest vocabularies in use have 262,144 tokens; sixteen times that is no danger.
    static let largestTokenID = (1 << 22) - 1
}
