//! Building one kernel: scopes, registers, variables, labels, and calls expanded in place.
//!
//! Scopes are those of the text: a body, a block of inline assembly, an expanded call. Parameters of
//! an expanded device function are the caller's `.param` variables under other names, in local memory.
//! What an instruction means is in the sibling modules; they call [`Builder::push`]. Start at
//! [`kernel`].

use std::collections::HashMap;

use super::{Init, Inst, Kernel, Op, Reg};
use crate::ptx::{Function, Instruction, Module, PtxError, Space, Statement, Variable};

/// The most instructions a kernel may have: a limit on expansion, far above any kernel of ours.
const CODE_MAX: usize = 1 << 20;
/// The deepest chain of expanded calls; recursion ends here.
const CALLS_MAX: usize = 16;
/// Bytes of shared memory that a kernel may declare, the hardware's limit.
const STATIC_SHARED_BYTES_MAX: u64 = 48 << 10;

/// What a name means.
#[derive(Clone, Debug)]
pub(super) enum Entity {
    Register { reg: Reg, bits: u32 },
    Label(u32),
    Targets(Vec<String>),
    Local(u64),
    Param(u64),
    Shared(u64),
    Global(u64),
    Const(u64),
}

pub(super) struct Builder<'a> {
    module: &'a Module,
    name: String,
    pub(super) code: Vec<Inst>,
    pub(super) registers: Vec<Init>,
    pub(super) constants: HashMap<u64, Reg>,
    scopes: Vec<HashMap<String, Entity>>,
    /// Where each label is, once it was met.
    labels: Vec<Option<u32>>,
    shared_bytes: u64,
    local_bytes: u64,
    /// Labels at which the expanded calls end, innermost last.
    returns: Vec<u32>,
    pub(super) carry: Option<Reg>,
    /// Guard and line of the instruction being decoded.
    guard: Option<(Reg, bool)>,
    line: u32,
}

/// Decodes the kernel `function` of `module`, whose global variables are at `globals`.
pub(crate) fn kernel(module: &Module, function: &Function, globals: &HashMap<String, u64>) -> Result<Kernel, PtxError> {
    let mut builder = Builder {
        module,
        name: function.name.clone(),
        code: Vec::new(),
        registers: Vec::new(),
        constants: HashMap::new(),
        scopes: vec![HashMap::new()],
        labels: Vec::new(),
        shared_bytes: 0,
        local_bytes: 0,
        returns: Vec::new(),
        carry: None,
        guard: None,
        line: function.line,
    };
    builder.module_variables(globals)?;
    let (mut params, mut param_bytes) = (Vec::new(), 0_u64);
    for param in &function.params {
        let bytes = param.bytes.unwrap_or(0);
        param_bytes = param_bytes.next_multiple_of(param.align.max(1));
        params.push((param_bytes, bytes));
        builder.scopes[0].insert(param.name.clone(), Entity::Param(param_bytes));
        param_bytes += bytes;
    }
    let Some(body) = &function.body else { return builder.error("a kernel needs a body") };
    builder.block(body, 0)?;
    builder.push(Op::Exit)?;
    builder.patch()?;
    Ok(Kernel {
        name: builder.name,
        code: builder.code,
        registers: builder.registers,
        params,
        param_bytes,
        shared_bytes: builder.shared_bytes,
        local_bytes: builder.local_bytes,
        max_threads: function.max_threads.unwrap_or(1024),
        required_threads: function.required_threads,
    })
}

/// Whether a statement of `body` mentions `name`.
fn mentions(body: &[Statement], name: &str) -> bool {
    body.iter().any(|statement| match statement {
        Statement::Block(inner) => mentions(inner, name),
        Statement::Instruction(instruction) => {
            instruction.operands.iter().any(|operand| super::operand::mentions(operand, name))
        }
        _ => false,
    })
}

impl<'a> Builder<'a> {
    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError { line: self.line, message: format!("{} (in {})", message.into(), self.name) })
    }

    fn module_variables(&mut self, globals: &HashMap<String, u64>) -> Result<(), PtxError> {
        let (mut dynamic, mut dynamic_align) = (Vec::new(), 16);
        for variable in &self.module.variables {
            match variable.space {
                Space::Shared if variable.bytes.is_none() => {
                    dynamic.push(variable.name.clone());
                    dynamic_align = variable.align.max(dynamic_align);
                }
                Space::Shared => {
                    // Any function's body may be expanded here, so all of them count as users.
                    let used = self.module.functions.iter().any(|function| {
                        (!function.entry || function.name == self.name)
                            && function.body.as_ref().is_some_and(|body| mentions(body, &variable.name))
                    });
                    if used {
                        self.shared(variable)?;
                    }
                }
                space => {
                    let Some(address) = globals.get(&variable.name) else {
                        return self.error(format!("variable {} has no address", variable.name));
                    };
                    let entity = if space == Space::Const { Entity::Const(*address) } else { Entity::Global(*address) };
                    self.scopes[0].insert(variable.name.clone(), entity);
                }
            }
        }
        // The dynamic part begins behind the static one, and static variables inside the body count too.
        let function = self.module.functions.iter().find(|function| function.entry && function.name == self.name);
        if let Some(body) = function.and_then(|function| function.body.as_ref()) {
            self.body_shared(body)?;
        }
        if !dynamic.is_empty() {
            self.shared_bytes = self.shared_bytes.next_multiple_of(dynamic_align);
            for name in dynamic {
                self.scopes[0].insert(name, Entity::Shared(self.shared_bytes));
            }
        }
        Ok(())
    }

    /// Lays out the shared variables that NVRTC moved into the body.
    fn body_shared(&mut self, body: &[Statement]) -> Result<(), PtxError> {
        for statement in body {
            match statement {
                Statement::Variable(variable) if variable.space == Space::Shared => self.shared(variable)?,
                Statement::Block(inner) => self.body_shared(inner)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn shared(&mut self, variable: &Variable) -> Result<(), PtxError> {
        let base = self.shared_bytes.next_multiple_of(variable.align.max(1));
        self.shared_bytes = base + variable.bytes.unwrap_or(0);
        if self.shared_bytes > STATIC_SHARED_BYTES_MAX {
            return self.error(format!(
                "shared variables take {} bytes, at most {STATIC_SHARED_BYTES_MAX} may be static",
                self.shared_bytes
            ));
        }
        self.scopes[0].insert(variable.name.clone(), Entity::Shared(base));
        Ok(())
    }

    /// A register of the program or a scratch register.
    pub(super) fn fresh(&mut self) -> Reg {
        self.registers.push(Init::Poison);
        (self.registers.len() - 1) as Reg
    }

    pub(super) fn constant(&mut self, bits: u64) -> Reg {
        let next = self.registers.len() as Reg;
        let reg = *self.constants.entry(bits).or_insert(next);
        if reg == next {
            self.registers.push(Init::Constant(bits));
        }
        reg
    }

    pub(super) fn find(&self, name: &str) -> Option<&Entity> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn declare(&mut self, name: String, entity: Entity) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, entity);
        }
    }

    fn label(&mut self) -> u32 {
        self.labels.push(None);
        (self.labels.len() - 1) as u32
    }

    /// The end of the innermost expanded call; `None` in the kernel's own body.
    pub(super) fn return_label(&self) -> Option<u32> {
        self.returns.last().copied()
    }

    /// Appends an instruction under the guard of the one being decoded.
    pub(super) fn push(&mut self, op: Op) -> Result<(), PtxError> {
        if self.code.len() >= CODE_MAX {
            return self.error(format!("a kernel has at most {CODE_MAX} instructions"));
        }
        let (guard, negated) = self.guard.unwrap_or((0, false));
        self.code.push(Inst { op, guard, guarded: self.guard.is_some(), negated, line: self.line });
        Ok(())
    }

    fn block(&mut self, body: &[Statement], depth: usize) -> Result<(), PtxError> {
        self.scopes.push(HashMap::new());
        // Branches go forward too, so labels are known before the first instruction.
        for statement in body {
            match statement {
                Statement::Label(name) => {
                    let label = self.label();
                    self.declare(name.clone(), Entity::Label(label));
                }
                Statement::Targets { name, labels } => self.declare(name.clone(), Entity::Targets(labels.clone())),
                _ => {}
            }
        }
        for statement in body {
            self.statement(statement, depth)?;
        }
        self.scopes.pop();
        Ok(())
    }

    fn statement(&mut self, statement: &Statement, depth: usize) -> Result<(), PtxError> {
        match statement {
            Statement::Block(inner) => self.block(inner, depth)?,
            Statement::Registers { name, range, bits } => {
                let names: Vec<String> = match range {
                    Some(count) => (0..*count).map(|index| format!("{name}{index}")).collect(),
                    None => vec![name.clone()],
                };
                for name in names {
                    let reg = self.fresh();
                    self.declare(name, Entity::Register { reg, bits: *bits });
                }
            }
            Statement::Variable(variable) if variable.space == Space::Shared => {}
            Statement::Variable(variable) => {
                let base = self.local_bytes.next_multiple_of(variable.align.max(1));
                self.local_bytes = base + variable.bytes.unwrap_or(0);
                self.declare(variable.name.clone(), Entity::Local(base));
            }
            Statement::Label(name) => {
                if let Some(Entity::Label(label)) = self.find(name).cloned() {
                    self.labels[label as usize] = Some(self.code.len() as u32);
                }
            }
            Statement::Targets { .. } => {}
            Statement::Instruction(instruction) => self.instruction(instruction, depth)?,
        }
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction, depth: usize) -> Result<(), PtxError> {
        self.line = instruction.line;
        self.guard = match &instruction.guard {
            None => None,
            Some((name, negated)) => match self.find(name) {
                Some(Entity::Register { reg, bits: 1 }) => Some((*reg, *negated)),
                _ => return self.error(format!("guard {name} is not a predicate")),
            },
        };
        let before = self.code.len();
        if instruction.name == "call" {
            self.call(instruction, depth)?;
        } else {
            self.decode(instruction)?;
        }
        self.guard = None;
        self.check_guard(before)
    }

    /// An instruction that became several must not change its own guard half-way.
    fn check_guard(&self, before: usize) -> Result<(), PtxError> {
        let parts = &self.code[before..];
        let Some((last, earlier)) = parts.split_last() else { return Ok(()) };
        let changes = |inst: &Inst| match inst.op {
            Op::One(_, d, _) | Op::Two(_, d, _) | Op::Compare { result: d, .. } => inst.guarded && d == last.guard,
            _ => false,
        };
        if earlier.iter().any(changes) {
            return self.error("an instruction of several steps writes its own guard, which is not implemented");
        }
        Ok(())
    }

    /// Expands a device function: its parameters become other names of the caller's variables.
    fn call(&mut self, instruction: &Instruction, depth: usize) -> Result<(), PtxError> {
        let (results, name, arguments) = super::operand::call_parts(instruction)?;
        let module = self.module;
        let callee = module.functions.iter().find(|function| function.name == name && function.body.is_some());
        let Some(Function { body: Some(body), params, returns, .. }) = callee else {
            return self
                .error(format!("function {name} is not in the module, and calls out of it are not implemented"));
        };
        if depth >= CALLS_MAX {
            return self.error(format!("calls nest at most {CALLS_MAX} deep, and recursion is not implemented"));
        }
        if params.len() != arguments.len() || returns.len() != results.len() {
            return self.error(format!("{name} takes {} parameters, got {}", params.len(), arguments.len()));
        }
        let mut scope = self.scopes[0].clone();
        for (param, given) in params.iter().zip(&arguments).chain(returns.iter().zip(&results)) {
            match self.find(given) {
                Some(entity @ (Entity::Local(_) | Entity::Param(_))) => {
                    let entity = entity.clone();
                    scope.insert(param.name.clone(), entity);
                }
                _ => return self.error(format!("argument {given} of {name} is not a .param variable")),
            }
        }
        let end = self.label();
        // A guarded call is a branch around it.
        if let Some((guard, negated)) = self.guard.take() {
            self.guard = Some((guard, !negated));
            self.push(Op::Branch(end))?;
            self.guard = None;
        }
        self.returns.push(end);
        let outer = std::mem::replace(&mut self.scopes, vec![scope]);
        self.block(body, depth + 1)?;
        self.scopes = outer;
        self.returns.pop();
        self.labels[end as usize] = Some(self.code.len() as u32);
        Ok(())
    }

    /// Turns labels into places.
    fn patch(&mut self) -> Result<(), PtxError> {
        let labels = std::mem::take(&mut self.labels);
        let place = |label: &mut u32| match labels[*label as usize] {
            Some(at) => {
                *label = at;
                true
            }
            None => false,
        };
        for inst in &mut self.code {
            let known = match &mut inst.op {
                Op::Branch(target) => place(target),
                Op::Switch { targets, .. } => targets.iter_mut().all(place),
                _ => true,
            };
            if !known {
                return Err(PtxError { line: inst.line, message: "branch to a label without a place".into() });
            }
        }
        Ok(())
    }
}
