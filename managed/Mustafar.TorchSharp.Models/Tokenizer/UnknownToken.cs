using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Stands for characters or bytes that a vocabulary lacks.</summary>
/// <param name="Id">The token's id; null if they are omitted.</param>
/// <param name="IsFused">Whether one token stands for several consecutive ones.</param>
internal sealed record UnknownToken(int? Id, bool IsFused)
{
    /// <summary>Reads it from the model of a tokenizer.json.</summary>
    /// <exception cref="CheckpointException">It is not in the vocabulary.</exception>
    public static UnknownToken Read(JsonElement model, IReadOnlyDictionary<string, int> vocabulary, string path)
    {
        bool isFused = model.FindBoolean("fuse_unk", path) ?? false;
        return model.FindString("unk_token", path) is not string token ? new UnknownToken(null, isFused)
            : vocabulary.TryGetValue(token, out int id) ? new UnknownToken(id, isFused)
            : throw new CheckpointException($"expected the token 'unk_token' = '{token}' in the vocabulary.", path);
    }

    /// <summary>Starts the symbols of a piece, to be merged.</summary>
    /// <param name="symbols">Receives them.</param>
    public Run Start(List<int> symbols) => new(this, symbols);

    /// <summary>Symbols of one piece. As in Hugging Face's library, an unknown one waits for the next known one.</summary>
    internal struct Run(UnknownToken unknown, List<int> symbols)
    {
        private bool _waits;

        /// <summary>Adds a known symbol.</summary>
        public void Add(int id)
        {
            Finish();
            symbols.Add(id);
        }

        /// <summary>Adds a known byte, which doesn't end the wait.</summary>
        public readonly void AddByte(int id) => symbols.Add(id);

        /// <summary>Adds an unknown symbol.</summary>
        public void AddUnknown()
        {
            if (!unknown.IsFused)
            {
                Finish();
            }

            _waits = true;
        }

        /// <summary>Ends the piece.</summary>
        public void Finish()
        {
            if (_waits && unknown.Id is int id)
            {
                symbols.Add(id);
            }

            _waits = false;
        }
    }
}
