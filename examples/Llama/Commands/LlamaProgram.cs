using System.CommandLine;
using System.CommandLine.Invocation;
using System.Globalization;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>The program's command line.</summary>
public static class LlamaProgram
{
    private const int Success = 0;
    private const int Failure = 1;
    private const int WrongUsage = 2;
    private const int Interrupted = 130; // as shells have it: 128 + SIGINT

    // How long a command may take to end after Ctrl-C or SIGTERM; at most it writes a cache to disk.
    private static readonly TimeSpan s_timeToEnd = TimeSpan.FromMinutes(1);

    /// <summary>Runs a command line.</summary>
    /// <param name="args">Its words.</param>
    /// <param name="input">Source of a chat's lines and of prompts that are not on the command line.</param>
    /// <param name="output">Receives results.</param>
    /// <param name="error">Receives messages.</param>
    /// <param name="showProgress">Whether <paramref name="error"/> is a terminal, where progress can be drawn.</param>
    /// <param name="inputIsTerminal">Whether <paramref name="input"/> is a terminal.</param>
    /// <param name="outputIsTerminal">Whether <paramref name="output"/> is a terminal.</param>
    /// <param name="cancellationToken">Ends the command as Ctrl-C does.</param>
    /// <returns>The exit code: 0, 1 after an error, 2 if the command line is wrong, or 130 if the command was interrupted.</returns>
    public static int Run(
        IReadOnlyList<string> args,
        TextReader input,
        TextWriter output,
        TextWriter error,
        bool showProgress,
        bool inputIsTerminal = false,
        bool outputIsTerminal = false,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(args);
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(output);
        ArgumentNullException.ThrowIfNull(error);
        (CultureInfo culture, CultureInfo uiCulture) = (CultureInfo.CurrentCulture, CultureInfo.CurrentUICulture);
        try
        {
            // Numbers have the same format in every locale, and all messages are in one language.
            CultureInfo.CurrentCulture = CultureInfo.CurrentUICulture = CultureInfo.InvariantCulture;
            return Run(args, new CommandInput(input, inputIsTerminal, outputIsTerminal), output, error, showProgress, cancellationToken);
        }
        finally
        {
            (CultureInfo.CurrentCulture, CultureInfo.CurrentUICulture) = (culture, uiCulture);
        }
    }

    private static int Run(
        IReadOnlyList<string> args, CommandInput input, TextWriter output, TextWriter error, bool showProgress, CancellationToken cancellationToken)
    {
        RootCommand root = new("Runs Llama models whose attention reads a pruned and compressed KV cache.");
        foreach (LlamaCommand command in (LlamaCommand[])
        [
            new GenerateCommand(input), new ChatCommand(input), new CompareCommand(input), new PerplexityCommand(), new RecallCommand(),
            new ScoreCommand(), new EvaluateCommand(), new RecommendCommand(),
        ])
        {
            // On another thread, since this one waits for signals.
            command.SetAction((arguments, interrupted) => Task.Run(
                () =>
                {
                    command.Run(arguments, output, error, showProgress, interrupted);
                    return Success;
                },
                CancellationToken.None));
            root.Subcommands.Add(command);
        }

        ParseResult result = root.Parse(args);
        if (result.Action is ParseErrorAction || result.Errors.Count > 0)
        {
            string name = result.CommandResult.Command is LlamaCommand command ? $"{command.Name} " : "";
            error.WriteLine($"error: {ErrorMessage.OneLine(ErrorMessage.OfUsage(result))} (see {name}--help)");
            return WrongUsage;
        }

        InvocationConfiguration configuration = new()
        {
            Output = output, Error = error, EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = s_timeToEnd,
        };
        try
        {
            return result.InvokeAsync(configuration, cancellationToken).GetAwaiter().GetResult();
        }
        catch (OperationCanceledException)
        {
            error.WriteLine("interrupted");
            return Interrupted;
        }
        catch (Exception exception)
        {
            // The boundary of the program: whatever went wrong is reported in one line.
            error.WriteLine($"error: {ErrorMessage.Of(exception)}");
            return Failure;
        }
    }
}
