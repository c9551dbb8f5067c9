using System.CommandLine;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options of commands that generate text.</summary>
/// <param name="maxTokens">Tokens to generate where the command line doesn't say.</param>
internal sealed class GenerationOptions(int maxTokens)
{
    private const string Default = "If not given, as the checkpoint's generation_config.json says.";

    private readonly Option<double?> _temperature = CommandOption.Number<double>(
        "--temperature", $"Divides the scores before a token is drawn; 0 takes the likeliest. {Default}", "T");

    private readonly Option<int?> _topK = CommandOption.Number<int>(
        "--top-k", $"Draw from the K likeliest tokens; 0 from all. {Default}", "K");

    private readonly Option<double?> _topP = CommandOption.Number<double>(
        "--top-p", $"Draw from the fewest of the likeliest tokens that have this probability together. {Default}", "P");

    private readonly Option<double?> _minP = CommandOption.Number<double>(
        "--min-p", $"Draw from the tokens that have at least this part of the likeliest one's probability. {Default}", "P");

    private readonly Option<double?> _repetitionPenalty = CommandOption.Number<double>(
        "--repetition-penalty", $"Divides the scores above 0 of tokens that the text has, and multiplies the others. {Default}", "X");

    private readonly Option<double> _frequencyPenalty = CommandOption.Number(
        "--frequency-penalty", "Taken from a token's score for each time that it was generated before.", "X", 0.0);

    private readonly Option<double> _presencePenalty = CommandOption.Number(
        "--presence-penalty", "Taken from a token's score if it was generated before.", "X", 0.0);

    private readonly Option<int> _seed = CommandOption.Number("--seed", "Start of the random numbers.", "S", 0);

    /// <summary>Tokens to generate at most.</summary>
    public Option<int> MaxTokens { get; } = NewMaxTokens(maxTokens);

    /// <summary>All of them.</summary>
    public IEnumerable<Option> All => [MaxTokens, .. Choosing];

    private Option[] Choosing => [_temperature, _topK, _topP, _minP, _repetitionPenalty, _frequencyPenalty, _presencePenalty, _seed];

    /// <summary>The option of commands that always take the likeliest token.</summary>
    public static Option<int> NewMaxTokens(int maxTokens) =>
        CommandOption.Number("--max-tokens", "Tokens to generate at most.", "N", maxTokens);

    /// <summary>Names of the options on the command line that say how tokens are drawn.</summary>
    public IReadOnlyList<string> GivenSampling(ParseResult arguments) =>
        [.. Choosing.Where(option => arguments.GetResult(option) is { Implicit: false }).Select(option => option.Name)];

    /// <summary>How tokens are to be chosen: as the command line says, and where it doesn't, the checkpoint.</summary>
    /// <param name="arguments">The command line.</param>
    /// <param name="model">Directory of the checkpoint.</param>
    /// <param name="output">Told of settings of the checkpoint that are not implemented.</param>
    /// <exception cref="CommandException">A value is out of range.</exception>
    /// <exception cref="CheckpointException">generation_config.json is not valid.</exception>
    public SamplingParameters Sampling(ParseResult arguments, string model, ConsoleOutput output)
    {
        GenerationConfig config = GenerationConfig.Load(model);
        if (config.Ignored.Count > 0)
        {
            output.Message($"warning: generation_config.json: {string.Join(", ", config.Ignored)} is not supported and has no effect");
        }

        return CommandOption.Made(
            () => config.Sampling with
            {
                Temperature = arguments.GetValue(_temperature) ?? config.Sampling.Temperature,
                TopK = arguments.GetValue(_topK) ?? config.Sampling.TopK,
                TopP = arguments.GetValue(_topP) ?? config.Sampling.TopP,
                MinP = arguments.GetValue(_minP) ?? config.Sampling.MinP,
                RepetitionPenalty = arguments.GetValue(_repetitionPenalty) ?? config.Sampling.RepetitionPenalty,
                FrequencyPenalty = arguments.GetValue(_frequencyPenalty),
                PresencePenalty = arguments.GetValue(_presencePenalty),
                Seed = unchecked((ulong)arguments.GetValue(_seed)),
            },
            (nameof(SamplingParameters.Temperature), _temperature),
            (nameof(SamplingParameters.TopK), _topK),
            (nameof(SamplingParameters.TopP), _topP),
            (nameof(SamplingParameters.MinP), _minP),
            (nameof(SamplingParameters.RepetitionPenalty), _repetitionPenalty),
            (nameof(SamplingParameters.FrequencyPenalty), _frequencyPenalty),
            (nameof(SamplingParameters.PresencePenalty), _presencePenalty));
    }
}
