/// The tables, how they came to be, and how a change becomes rows.

import CoordinatorCore
import FoundationEssentials
import GRDB
import Plan
import Primitives

enum Schema {
    /// Never edit a migration that was released: add another.
    static var migrator: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        migrator.registerMigration("first federation") { database in
            try database.execute(
                sql: """
                    CREATE TABLE run (id TEXT NOT NULL, plan BLOB NOT NULL, traffic BLOB, finished INTEGER NOT NULL DEFAULT 0);
                    CREATE TABLE member (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
                    CREATE TABLE attempt (round INTEGER NOT NULL, attempt INTEGER NOT NULL, record BLOB NOT NULL,
                        PRIMARY KEY (round, attempt)) WITHOUT ROWID;
                    CREATE TABLE chunk (client TEXT NOT NULL, digest TEXT NOT NULL, position INTEGER NOT NULL,
                        bytes BLOB NOT NULL, PRIMARY KEY (client, digest, position));
                    CREATE TABLE contribution (round INTEGER NOT NULL, client TEXT NOT NULL, record BLOB NOT NULL,
                        bytes BLOB, PRIMARY KEY (round, client));
                    CREATE TABLE blob (digest TEXT PRIMARY KEY, bytes BLOB NOT NULL);
                    CREATE TABLE adapter (round INTEGER PRIMARY KEY, record BLOB NOT NULL);
                    CREATE TABLE evaluation (round INTEGER NOT NULL, client TEXT NOT NULL, record BLOB NOT NULL,
                        PRIMARY KEY (round, client)) WITHOUT ROWID;
                    CREATE TABLE round (round INTEGER PRIMARY KEY, record BLOB NOT NULL);
                    """)
        }
        migrator.registerMigration("noise") { database in
            try database.execute(sql: "ALTER TABLE run ADD COLUMN noise BLOB")
        }
        return migrator
    }

    private static func encode(_ value: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        return try encoder.encode(value)
    }

    private static func decode<T: Decodable>(_ type: T.Type, _ data: Data) throws -> T {
        do {
            return try JSONDecoder().decode(type, from: data)
        } catch {
            throw Failure(.badData, "the state holds a record that cannot be read (\(type): \(error)): restore a copy")
        }
    }

    static func apply(_ change: StoreChange, to database: Database) throws {
        switch change {
        case .run(let id, let plan, let noise):
            try database.execute(
                sql: "INSERT INTO run (id, plan, noise) VALUES (?, ?, ?)",
                arguments: [id, Data(PlanCoding.encode(plan)), try noise.map(encode)])
        case .member(let member):
            try database.execute(
                sql: "INSERT OR REPLACE INTO member (name, record) VALUES (?, ?)", arguments: [member.name, try encode(member)])
        case .forget(let name):
            try database.execute(sql: "DELETE FROM member WHERE name = ?", arguments: [name])
        case .chunk(let client, let digest, let index, let bytes):
            try database.execute(
                sql: "DELETE FROM chunk WHERE client = ? AND digest <> ?", arguments: [client, digest.description])
            try database.execute(
                sql: "INSERT OR REPLACE INTO chunk (client, digest, position, bytes) VALUES (?, ?, ?, ?)",
                arguments: [client, digest.description, index, Data(bytes)])
        case .contribution(let record, let bytes):
            try database.execute(
                sql: "INSERT OR REPLACE INTO contribution (round, client, record, bytes) VALUES (?, ?, ?, ?)",
                arguments: [record.round, record.client, try encode(record), Data(bytes)])
            try database.execute(sql: "DELETE FROM chunk WHERE client = ?", arguments: [record.client])
        case .discardChunks(let client):
            try database.execute(sql: "DELETE FROM chunk WHERE client = ?", arguments: [client])
        case .attempt(let attempt):
            try database.execute(
                sql: "INSERT OR REPLACE INTO attempt (round, attempt, record) VALUES (?, ?, ?)",
                arguments: [attempt.round, attempt.attempt, try encode(attempt)])
        case .blob(let blob, let bytes):
            try database.execute(
                sql: "INSERT OR IGNORE INTO blob (digest, bytes) VALUES (?, ?)",
                arguments: [blob.digest.description, Data(bytes)])
        case .discardBlob(let digest):
            try database.execute(sql: "DELETE FROM blob WHERE digest = ?", arguments: [digest.description])
        case .adapter(let adapter):
            try database.execute(
                sql: "INSERT OR REPLACE INTO adapter (round, record) VALUES (?, ?)",
                arguments: [adapter.round, try encode(adapter)])
        case .closeRound(let record):
            try insert(record, into: database)
            let rows = try Row.fetchAll(
                database, sql: "SELECT client, record FROM contribution WHERE round = ?", arguments: [record.round])
            for row in rows {
                var contribution = try decode(ContributionRecord.self, row["record"])
                contribution.counted = record.participants.contains(contribution.client)
                try database.execute(
                    sql: "UPDATE contribution SET record = ?, bytes = NULL WHERE round = ? AND client = ?",
                    arguments: [try encode(contribution), record.round, contribution.client])
            }
            try database.execute(sql: "DELETE FROM chunk")
        case .updateRecord(let record):
            try insert(record, into: database)
        case .evaluation(let record):
            try database.execute(
                sql: "INSERT OR REPLACE INTO evaluation (round, client, record) VALUES (?, ?, ?)",
                arguments: [record.round, record.client, try encode(record)])
        case .traffic(let traffic):
            try database.execute(sql: "UPDATE run SET traffic = ?", arguments: [try encode(traffic)])
        case .finished:
            try database.execute(sql: "UPDATE run SET finished = 1")
        }
    }

    private static func insert(_ record: RoundRecord, into database: Database) throws {
        try database.execute(
            sql: "INSERT OR REPLACE INTO round (round, record) VALUES (?, ?)", arguments: [record.round, try encode(record)])
    }

    static func load(_ database: Database) throws -> StoredFederation? {
        guard let run = try Row.fetchOne(database, sql: "SELECT * FROM run") else { return nil }
        let noise = try (run["noise"] as Data?).map { try decode(CoordinatorNoise.self, $0) }
        var stored = StoredFederation(runID: run["id"], plan: try PlanCoding.decode(Array(run["plan"] as Data)), noise: noise)
        func records<T: Decodable>(_ type: T.Type, _ table: String, by order: String) throws -> [T] {
            try Data.fetchAll(database, sql: "SELECT record FROM \(table) ORDER BY \(order)").map { try decode(type, $0) }
        }
        stored.members = try records(Member.self, "member", by: "name")
        stored.attempt = try records(RoundAttempt.self, "attempt", by: "round, attempt").last
        stored.contributions = try records(ContributionRecord.self, "contribution", by: "round, client")
        stored.adapters = try records(GlobalAdapter.self, "adapter", by: "round")
        stored.evaluations = try records(EvaluationRecord.self, "evaluation", by: "round, client")
        stored.records = try records(RoundRecord.self, "round", by: "round")
        if let traffic = run["traffic"] as Data? { stored.traffic = try decode(Traffic.self, traffic) }
        stored.finished = run["finished"]
        return stored
    }
}
